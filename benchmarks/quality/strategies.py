"""Every strategy that ships, in short runs side by side.

By default the job is that of ``python sim.py``, shortened to 20 rounds. The table - ranking, bytes and seconds of each
strategy - is printed and written into docs/strategies.md, between its two marks. Each run's folder stays in
``save_dir``. A short run says how fast a strategy begins to learn, not where it ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import changed, check_names, job, strategy
from benchmarks.tables import page_text, replaced
from fedmoe.settings import Settings
from fedmoe_api.simulation import federate
from fedmoe_server.report.report import table
from fedmoe_server.report.run_folder import read_result
from fedmoe_server.rounds.record import Result

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"
ROUNDS = 20


_ATTENTIVE = "examples.strategies.attentive:Attentive"
_ADAM = {"eta": 0.005, "tau": 1e-6}
_FEDADAM = {"name": "fedadam", **_ADAM}
# So little noise is no privacy worth the name: it shows that the wrappers work, and what clipping alone costs.
_NOISE = {"noise_multiplier": 0.01, "num_sampled_clients": 47}
# The clients take one step of SGD with rate 0.1, so a plain mean moves by a tenth of the mean gradient.
ROWS: dict[str, dict[str, Any]] = {
    "fedadam": strategy("fedadam", "cosine", **_ADAM),
    "lazyadam": strategy("lazyadam", "cosine", **_ADAM),
    "fedyogi": strategy("fedyogi", "cosine", **_ADAM),
    "fedadagrad": strategy("fedadagrad", "cosine", eta=0.02, tau=1e-6),
    "fedavg": strategy("fedavg"),
    "fedavgm": strategy("fedavgm", "cosine", server_learning_rate=10.0, server_momentum=0.9),
    "fedprox": strategy("fedprox", proximal_mu=0.1),
    "fedmedian": strategy("fedmedian"),
    "fedtrimmedavg": strategy("fedtrimmedavg", beta=0.1),
    "krum": strategy("krum", num_malicious_nodes=4),
    "multikrum": strategy("multikrum", num_malicious_nodes=4, num_nodes_to_select=20),
    "bulyan": strategy("bulyan", num_malicious_nodes=4),
    "qfedavg": strategy("qfedavg", client_learning_rate=0.1),
    "rowwise (fedavg)": strategy("rowwise", strategy="fedavg"),
    "rowwise (fedadam)": strategy("rowwise", "cosine", strategy=_FEDADAM),
    "robust-rows (fedadam)": strategy("robust-rows", "cosine", strategy=_FEDADAM),
    "dp-server-fixed (fedavg)": strategy("dp-server-fixed", strategy="fedavg", clipping_norm=0.5, **_NOISE),
    "dp-server-adaptive (fedavg)": strategy("dp-server-adaptive", strategy="fedavg", **_NOISE),
    "dp-client-fixed (fedavg)": strategy("dp-client-fixed", strategy="fedavg", clipping_norm=0.5, **_NOISE),
    "dp-client-adaptive (fedavg)": strategy("dp-client-adaptive", strategy="fedavg", **_NOISE),
    "attentive (fedavg)": strategy(_ATTENTIVE, strategy="fedavg"),
    "attentive (fedadam)": strategy(_ATTENTIVE, "cosine", strategy=_FEDADAM),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--only", nargs="+", default=list(ROWS), help="names of the table's rows; default: all")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose table is replaced")


def run(given: argparse.Namespace) -> None:
    """Run what is asked for and write the table."""
    check_names(given.only, ROWS, "row")
    base = job(given.settings, [f"num_rounds={ROUNDS}"])
    text = page_text(given.page)  # a page without a place for the table is refused before the runs
    rows = []
    for name in given.only:
        print(f"== {name}", flush=True)
        run_dir = federate(changed(base, ROWS[name]))
        rows.append(row(name, read_result(run_dir)))
    made = table_of(rows, base)
    print(made)
    given.page.write_text(replaced(text, made), encoding="utf-8")


def row(name: str, result: Result) -> list[str]:
    """Return a row of the table from the end of a run."""
    ranking = [split["global"][key] for split in (result.validation, result.test) for key in ("hr@10", "ndcg@10")]
    sent = ((result.bytes_down or 0) + (result.bytes_up or 0)) / 1e6
    return [name, *(f"{value:.3f}".lstrip("0") for value in ranking), f"{sent:.0f}", f"{result.seconds or 0:.0f}"]


def table_of(rows: Sequence[Sequence[str]], base: Settings) -> str:
    """Return what the table is about and the table, the best by NDCG@10 on validation first."""
    federation = base.federation
    about = (
        f"{base.name}, {federation.num_rounds} rounds of {federation.client_fraction:.0%} of the clients, seed "
        f"{base.seed}; the server's model, all clients; bytes both ways and seconds of the whole run, final evaluation "
        f"included."
    )
    head = ["strategy", "validation HR@10", "NDCG@10", "test HR@10", "NDCG@10", "MB", "seconds"]
    return f"{about}\n\n{table(head, sorted(rows, key=lambda cells: -float(cells[2])))}"
