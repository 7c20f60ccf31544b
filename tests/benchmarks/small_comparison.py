"""A small comparison, with one federated run, that the tests of all commands of the quality benchmark read."""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from benchmarks.quality.__main__ import main

# Private item vectors too: then each user has a catalogue's side of its own.
WORDS = (
    "name=tiny dataset=synthetic data.synthetic.users=30 data.synthetic.items=400 dim=8 attention_dim=8 blocks=1 "
    "max_seq_len=8 memory_size=8 memory_refresh=4 num_negatives=10 num_rounds=4 client_fraction=0.5 warmup_rounds=1 "
    "learning_rate=1.0 seed=1 hosts=1 shared=[backbone,experts.*]"
).split()


@dataclass(frozen=True)
class Compared:
    """folder: of the page; shown: what the command printed, the first time and when asked again."""

    folder: Path
    shown: tuple[str, str]

    @property
    def run_dir(self) -> Path:
        """The folder of the federated run."""
        (found,) = (self.folder / "runs").iterdir()
        return found


def compare(folder: Path) -> Compared:
    words = [
        *WORDS,
        "--seeds",
        "1",
        "--folder",
        str(folder),
        "--variants",
        "popularity",
        "central mixture",
    ]
    words += ["--against", "federated mixture"]
    shown = []
    for _ in range(2):
        with redirect_stdout(StringIO()) as output:
            assert main(["compare", *words]) == 0
        shown.append(output.getvalue())
    return Compared(folder / "tiny", (shown[0], shown[1]))
