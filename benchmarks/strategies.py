"""``python -m benchmarks.strategies [CONFIG] [key=value ...]``: every strategy that ships, in short runs side by side.

By default the job is that of ``python sim.py``, shortened to 20 rounds. The table - ranking, bytes and seconds of each
strategy - is printed and written into docs/strategies.md, between its two marks. Each run's folder stays in
``save_dir``. A short run says how fast a strategy begins to learn, not where it ends.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmoe.errors import FedMoEError, nearest
from fedmoe.loading import load_settings, settings_from
from fedmoe.settings import Settings
from sim import simulate

PAGE = Path(__file__).parents[1] / "docs" / "strategies.md"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
ROUNDS = 20


@dataclass(frozen=True)
class Entry:
    """A row of the table: what ``federation`` is set to; server_schedule cosine where there is a server's rate."""

    strategy: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "constant"


ATTENTIVE = "examples.strategies.attentive:Attentive"
_ADAM = {"eta": 0.005, "tau": 1e-6}
# So little noise is no privacy worth the name: it shows that the wrappers work, and what clipping alone costs.
_NOISE = {"noise_multiplier": 0.01, "num_sampled_clients": 47}
# The clients take one step of SGD with rate 0.1, so a plain mean moves by a tenth of the mean gradient.
ENTRIES: dict[str, Entry] = {
    "fedadam": Entry("fedadam", _ADAM, "cosine"),
    "fedyogi": Entry("fedyogi", _ADAM, "cosine"),
    "fedadagrad": Entry("fedadagrad", {"eta": 0.02, "tau": 1e-6}, "cosine"),
    "fedavg": Entry("fedavg"),
    "fedavgm": Entry("fedavgm", {"server_learning_rate": 10.0, "server_momentum": 0.9}, "cosine"),
    "fedprox": Entry("fedprox", {"proximal_mu": 0.1}),
    "fedmedian": Entry("fedmedian"),
    "fedtrimmedavg": Entry("fedtrimmedavg", {"beta": 0.1}),
    "krum": Entry("krum", {"num_malicious_nodes": 4}),
    "multikrum": Entry("multikrum", {"num_malicious_nodes": 4, "num_nodes_to_select": 20}),
    "bulyan": Entry("bulyan", {"num_malicious_nodes": 4}),
    "qfedavg": Entry("qfedavg", {"client_learning_rate": 0.1}),
    "rowwise (fedavg)": Entry("rowwise", {"strategy": "fedavg"}),
    "rowwise (fedadam)": Entry("rowwise", {"strategy": {"name": "fedadam", **_ADAM}}, "cosine"),
    "robust-rows (fedadam)": Entry("robust-rows", {"strategy": {"name": "fedadam", **_ADAM}}, "cosine"),
    "dp-server-fixed (fedavg)": Entry("dp-server-fixed", {"strategy": "fedavg", "clipping_norm": 0.5, **_NOISE}),
    "dp-server-adaptive (fedavg)": Entry("dp-server-adaptive", {"strategy": "fedavg", **_NOISE}),
    "dp-client-fixed (fedavg)": Entry("dp-client-fixed", {"strategy": "fedavg", "clipping_norm": 0.5, **_NOISE}),
    "dp-client-adaptive (fedavg)": Entry("dp-client-adaptive", {"strategy": "fedavg", **_NOISE}),
    "attentive (fedavg)": Entry(ATTENTIVE, {"strategy": "fedavg"}),
    "attentive (fedadam)": Entry(ATTENTIVE, {"strategy": {"name": "fedadam", **_ADAM}}, "cosine"),
}


def main(words: Sequence[str]) -> int:
    """Run what is asked for and write the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__.split("\n\n")[0])
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--only", nargs="+", default=list(ENTRIES), help="names of the table's rows; default: all")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose table is replaced")
    given = parser.parse_intermixed_args(words)
    try:
        for name in given.only:
            if name not in ENTRIES:
                raise FedMoEError(f"no row '{name}'{nearest(name, ENTRIES)} They are: {', '.join(ENTRIES)}")
        base, _ = load_settings([*_config(given.settings), f"num_rounds={ROUNDS}", *_pairs(given.settings)])
        text = _page_text(given.page)
        rows = []
        for name in given.only:
            print(f"== {name}", flush=True)
            run_dir = simulate(changed(base, name))
            rows.append(row(name, json.loads((run_dir / "result.json").read_text(encoding="utf-8"))))
        made = table(rows, base)
        print(made)
        given.page.write_text(replaced(text, made), encoding="utf-8")
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def changed(base: Settings, name: str) -> Settings:
    """Return the base settings with the strategy of a row of the table."""
    entry = ENTRIES[name]
    tree: dict[str, Any] = base.model_dump(mode="json")
    tree["federation"] |= {
        "strategy": entry.strategy,
        "strategy_parameters": dict(entry.parameters),
        "server_schedule": entry.schedule,
    }
    return settings_from(tree)


def row(name: str, result: Mapping[str, Any]) -> list[str]:
    """Return a row of the table from a run's ``result.json``."""
    ranking = [result[split]["global"][key] for split in ("validation", "test") for key in ("hr@10", "ndcg@10")]
    sent = (result["bytes_down"] + result["bytes_up"]) / 1e6
    return [name, *(f"{value:.3f}".lstrip("0") for value in ranking), f"{sent:.0f}", f"{result['seconds']:.0f}"]


def table(rows: Sequence[Sequence[str]], base: Settings) -> str:
    """Return the table in Markdown, the best by NDCG@10 on validation first."""
    federation = base.federation
    titles = ["strategy", "validation HR@10", "NDCG@10", "test HR@10", "NDCG@10", "MB", "seconds"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *sorted(rows, key=lambda cells: -float(cells[2]))]
    head = (
        f"{base.name}, {federation.num_rounds} rounds of {federation.client_fraction:.0%} of the clients, seed "
        f"{base.seed}; the server's model, all clients; bytes both ways and seconds of the whole run, final evaluation "
        f"included."
    )
    return "\n".join([head, "", *("| " + " | ".join(line) + " |" for line in lines)])


def replaced(text: str, made: str) -> str:
    """Return a page with the table between its marks replaced. FedMoEError: it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise FedMoEError(f"the page has no lines '{BEGIN}' and '{END}' to put the table between")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def _page_text(page: Path) -> str:
    """Read the page, and see before any run that the table has a place in it."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise FedMoEError(f"{page} cannot be read: {error}") from error
    replaced(text, "")
    return text


def _config(words: Sequence[str]) -> list[str]:
    return [word for word in words[:1] if "=" not in word]


def _pairs(words: Sequence[str]) -> list[str]:
    return list(words[len(_config(words)) :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
