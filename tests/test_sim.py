"""The front door, with real engines and real clients on a small synthetic data set."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from hosts_here import put_here
from safetensors.numpy import load_file

import sim
from strategies import PartialAggregation

ROOT = Path(__file__).parents[1]
SMALL = (
    "dataset=synthetic data.synthetic.users=20 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 max_windows=0 num_negatives=20 client_fraction=0.5 warmup_rounds=2 "
    "evaluate_every=2 evaluate_clients=10 hosts=1 client_cpus=0.5 engine=ray"
).split()
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(ray_address: str) -> Run:
    """Runs sim.py in this process and returns the run folder in a folder."""

    def run(folder: Path, *words: str) -> Path:
        assert sim.main([*SMALL, f"ray_address={ray_address}", f"save_dir={folder}", *words]) == 0
        (run_dir,) = folder.iterdir()
        return run_dir

    return run


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from beginning to end. Tests that change it copy it."""
    return run(tmp_path_factory.mktemp("whole") / "runs", "num_rounds=6", "checkpoint_every=4")


def final_arrays(run_dir: Path) -> dict[str, np.ndarray]:
    checkpoint = sorted((run_dir / "checkpoints").iterdir())[-1]
    return {
        f"{file.name}/{name}": array
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def records(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "phases")} for line in lines
    ]


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_flower_and_ray_give_the_same_bits(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Outliers are not cut down where hosts merge the replies, so here they are not at all. FedAdam divides by roots
    # that may be as small as tau: with the default's 1e-6 it would magnify the last digits of merged means.
    words = ["num_rounds=3", "federation.guards.norm_multiple=0", "strategy_parameters.tau=1e-3"]
    ray = run(tmp_path / "ray", *words, "hosts=2", "aggregate_in_hosts=false")
    flower = run(tmp_path / "flower", *words, "engine=flower", "client_cpus=1")
    assert same(final_arrays(ray), final_arrays(flower))
    assert records(ray) == records(flower)
    put_here(monkeypatch)  # the hosts of these are in this process
    one_host = run(tmp_path / "one", *words, "aggregate_in_hosts=false")
    assert same(final_arrays(ray), final_arrays(one_host))
    merged = run(tmp_path / "merged", *words, "hosts=2")
    plain = final_arrays(ray)
    for name, array in final_arrays(merged).items():
        np.testing.assert_allclose(array, plain[name], rtol=0, atol=1e-6)
    for before, after in zip(records(ray), records(merged), strict=True):
        assert [after[k] for k in ("clients", "bytes_up")] == [before[k] for k in ("clients", "bytes_up")]


def test_resume_equals_the_uninterrupted_run_and_leaves_everything_behind(whole: Path, tmp_path: Path) -> None:
    for name in (
        "settings.yaml",
        "metrics.jsonl",
        "result.json",
        "baselines.json",
        "report.md",
        "loss.png",
        "ranking.png",
    ):
        assert (whole / name).stat().st_size > 0
    assert list(whole.glob("**/events.out.tfevents*"))
    result = json.loads((whole / "result.json").read_text())
    assert result["status"] == "completed"
    assert 0 <= result["test"]["personalised"]["hr@10"] <= 1

    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "round-000006")
    (broken / "result.json").unlink()
    assert sim.main(["--resume", str(broken)]) == 0
    assert same(final_arrays(whole), final_arrays(broken))
    assert records(whole) == records(broken)
    again = json.loads((broken / "result.json").read_text())
    assert (again["test"], again["validation"]) == (result["test"], result["validation"])


def test_private_parameters_stay_where_they_are(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the warm-up the server's copy does not change by a bit, the clients' own advance, and none is sent."""
    received: dict[int, set[str]] = {}
    aggregate = PartialAggregation.aggregate_train

    def audited(self: PartialAggregation, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        received[server_round] = {
            name.removesuffix("/rows")
            for reply in replies
            for record in reply.content.array_records.values()
            for name in record
        }
        return aggregate(self, server_round, replies)

    monkeypatch.setattr(PartialAggregation, "aggregate_train", audited)
    put_here(monkeypatch)
    run_dir = run(tmp_path / "runs", "num_rounds=5", "warmup_rounds=2", "checkpoint_every=1", "client_fraction=1")
    earlier, later = (
        load_file(run_dir / "checkpoints" / name / "arrays.safetensors") for name in ("round-000004", "round-000005")
    )
    private = {name for name in later if name.startswith(("router.", "gate.", "norms."))}
    assert received[2] == set(later)
    assert received[3] == received[4] == received[5] == set(later) - private
    assert all(earlier[name].tobytes() == later[name].tobytes() for name in private)
    # What is added to all keys alike does not change an attention: no client moves these, so neither does their mean.
    moved = {name for name in set(later) - private if not name.endswith(".key.bias")}
    assert all(earlier[name].tobytes() != later[name].tobytes() for name in moved)
    gates = [json.loads(line)["train"]["gate"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(set(gates[2:])) == 3
    assert later["gate.value"] != pytest.approx(gates[4], abs=1e-9)


def test_neither_torch_nor_ray_is_imported_before_the_settings_are_checked() -> None:
    code = "import sys, sim; print(sim.main(sys.argv[1:]), {'torch', 'ray', 'flwr'} & set(sys.modules))"
    for words, status in (["nun_rounds=3"], 2), (["--help"], 0):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stdout.splitlines()[-1] == f"{status} set()"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["dataset=ml-10k"], "data.dataset = 'ml-10k'"),
        (["nun_rounds=3"], "did you mean 'num_rounds'"),
        (["learning_rate=0"], "training.learning_rate = 0"),
        (["text_file=missing.npy"], "missing.npy"),
        (["visual_file={folder}/truncated.npy"], "truncated.npy"),
        (["visual_file={folder}/rows.npy"], "rows.npy"),
        (["strategy=fedadm"], "did you mean 'fedadam'"),
        (["strategy_parameters.etta=1"], "etta"),
        (["--resume", "{folder}/nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    np.save(tmp_path / "rows.npy", np.ones((7, 3), np.float32))
    (tmp_path / "truncated.npy").write_bytes((tmp_path / "rows.npy").read_bytes()[:-8])
    words = [word.format(folder=tmp_path) for word in words]
    given = (
        words
        if words[0] == "--resume"
        else [*SMALL, f"ray_address={ray_address}", f"save_dir={tmp_path / 'runs'}", *words]
    )
    assert sim.main(given) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_another_model_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    settings = (run_dir / "settings.yaml").read_text()
    (run_dir / "settings.yaml").write_text(settings.replace("  dim: 8\n", "  dim: 16\n"))
    assert sim.main(["--resume", str(run_dir)]) == 2
    error = capsys.readouterr().err
    assert "items.ids.weight" in error
    assert "8" in error


def test_a_run_that_loses_its_clients_fails(
    ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A learning rate this large drives every client's loss out of the finite numbers.
    words = [
        *SMALL,
        f"ray_address={ray_address}",
        f"save_dir={tmp_path}",
        "num_rounds=4",
        "learning_rate=1e30",
        "clip_norm=0",
        "local_epochs=3",
    ]
    assert sim.main(words) == 2
    error = capsys.readouterr().err
    assert "FloatingPointError" in error
    assert "training.learning_rate" in error
    (run_dir,) = tmp_path.iterdir()
    assert json.loads((run_dir / "result.json").read_text())["status"] == "failed"
