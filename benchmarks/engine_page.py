"""The Markdown page of the engine benchmark."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.engine_cases import ENGINES
from benchmarks.engine_figures import Figure, beside, figure, ratios, seconds_of_client
from benchmarks.engine_plots import draw
from benchmarks.engine_runs import Result, Results

_GB, _MB = 1e9, 1e6
_ABOUT = """# Performance

What a round costs, on each engine, beside the least that it could cost and beside another simulator. Made by

    {command}

on {machine}.

* Each engine runs in a process of its own, in all cases in turn and each {repeats}; figures are medians over the
  repeats, with the range in parentheses. A ratio is the median of the ratios within a repeat.
* Clients, seeds, windows and negatives are the same for all. The settings are a job's own after its warm-up rounds, so
  that private parameters are kept, with the cohorts named below; nothing is evaluated or checkpointed. The MovieLens
  jobs have one expert, of titles, unless `--features` is given; the synthetic ones have two.
* *clients/s* is that of warm rounds, from the choice of the cohort to the new model. *first round* is what passes from
  the engine's start, with everything imported and the data in the cache, to the end of the first round.
* *driver* and *tree* are the peaks of the server's process and of it with all that it has started, as proportional set
  size: what several processes share counts once. *down* and *up* are the payload of one client in one round.
* `central` is the same windows in large batches in one process with all cores: forward, backward, step, and nothing
  else. An engine's *efficiency* is that time divided by its round's.
* `pfl` is [pfl-research](https://github.com/apple/pfl-research), one process a core: FederatedAveraging,
  SimulatedBackend and the same torch model, with the users balanced over the processes.

`python -m benchmarks.engine --help` tells how to measure a part, or something else. pfl-research lives in an
environment of its own, whose interpreter `--pfl-python` names: `python3.11 -m venv pfl-env`, then
`pfl-env/bin/pip install "torch<2.14" "pfl==0.6.0" pydantic pyyaml`.
"""


def write_page(results: Results, left_out: Mapping[str, str], command: str, folder: Path, pictures: Path) -> Path:
    """Write ``performance.md`` into ``folder``, its plots into ``folder / pictures``, and return the page."""
    measured = [result for result in results.all if result.engine != "data"]
    repeats = max((result.repeat for result in measured), default=0) + 1
    often = "once" if repeats == 1 else f"{repeats} times"
    parts = [_ABOUT.format(command=command.strip(), machine=_machine(), repeats=often)]
    for case in results.cases():
        if case.startswith("ml-"):
            parts += [f"## {_title(results, case)}", _job_table(results, case), _ratio_table(results, case)]
    sweep = sorted((case for case in results.cases() if case.startswith("synthetic-")), key=_users_of)
    if sweep:
        plot = draw(_against_users(results, sweep), "users", folder / pictures / "cost-users.png")
        parts += ["## Against the number of users", _SWEEP, _sweep_table(results, sweep), _image(plot, folder)]
        plot = draw(_against_cohort(results, sweep[-1]), "clients of a round", folder / pictures / "cost-cohort.png")
        parts += [f"## Against the cohort, {_users_of(sweep[-1]):,} users", _cohort_table(results, sweep[-1])]
        parts += [_image(plot, folder)]
    parts += [
        f"## {_title(results, case)}\n\n{_CATALOGUE}\n\n{_job_table(results, case)}"
        for case in results.cases()
        if case.startswith("catalogue-")
    ]
    parts += ["## Making the data", _data_table(results)]
    if left_out:
        parts += ["## Left out", "\n".join(f"* {engine}: {reason}" for engine, reason in left_out.items())]
    page = folder / "performance.md"
    page.write_text("\n\n".join(part.strip() for part in parts if part) + "\n", encoding="utf-8")
    return page


_SWEEP = """Synthetic histories of the same lengths over the same 2,000 items; only the number of users changes.
`flower` is not among them: its dispatcher looks at every message for each node."""
_CATALOGUE = "`ray, dense` sends the whole item table; the others send the touched rows, where that is smaller."


def _machine() -> str:
    cores = os.cpu_count() or 1
    versions = ", ".join(f"{name} {version(name)}" for name in ("flwr", "ray", "torch"))
    memory = psutil.virtual_memory().total / 2**30
    return f"{cores} cores ({platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}, {versions}"


def _title(results: Results, case: str) -> str:
    made = results.of(case, "data")[0]
    others = [result for result in results.all if result.case == case and result.engine != "data"]
    sampled = f", {others[0].phases[0].clients:,} sampled" if others else ""
    dataset = str(made.plan["settings"]["data"]["dataset"])
    stand_in = " (a synthetic stand-in of its shape)" if case.startswith("ml-") and dataset == "synthetic" else ""
    users, items = made.phases[0].clients, made.notes["items"]
    return f"{case}{stand_in}: {users:,} users, {items:,} items{sampled}"


def _engines(results: Results, case: str) -> list[str]:
    return [engine for engine in ENGINES if results.of(case, engine)]


def _job_table(results: Results, case: str) -> str:
    rows = []
    for engine in _engines(results, case):
        runs = results.of(case, engine)
        alone = engine == "central"
        rows.append(
            [
                engine,
                _of(runs, lambda run: 1 / seconds_of_client(run.phases[0])).text(),
                _of(runs, lambda run: 1e3 * seconds_of_client(run.phases[0])).text(2),
                "" if alone else _of(runs, lambda run: run.first).text(1),
                _of(runs, lambda run: run.phases[0].driver).text(2, _GB),
                _of(runs, lambda run: run.phases[0].tree).text(2, _GB),
                _bytes(_of(runs, lambda run: run.phases[0].down)),
                _bytes(_of(runs, lambda run: run.phases[0].up)),
            ]
        )
    head = "engine, clients/s, ms a client, first round s, driver GB, tree GB, MB down, MB up"
    return _table(head.split(", "), rows)


def _ratio_table(results: Results, case: str) -> str:
    rows = [[ratio.what, f"{ratio.wanted:g}", ratio.measured.text(2)] for ratio in ratios(results, case)]
    return _table(["ratio", "wanted, at least", "measured"], rows) if rows else ""


def _sweep_table(results: Results, sweep: Sequence[str]) -> str:
    rows = []
    for case in sweep:
        for engine in _engines(results, case):
            runs = results.of(case, engine)
            rows.append(
                [
                    f"{_users_of(case):,}",
                    engine,
                    _of(runs, lambda run: 1e3 * seconds_of_client(run.phases[0])).text(2),
                    _ratio(beside(results, engine, (case, 0), (sweep[0], 0))),
                    _of(runs, lambda run: run.first).text(1),
                    _of(runs, lambda run: run.phases[0].driver).text(2, _GB),
                    _of(runs, lambda run: run.phases[0].tree).text(2, _GB),
                ]
            )
    compared = f"of {_users_of(sweep[0]):,} users'"
    return _table(["users", "engine", "ms a client", compared, "first round s", "driver GB", "tree GB"], rows)


def _cohort_table(results: Results, case: str) -> str:
    """One row a phase; the cohorts are run one after the other in one process, so memory includes the earlier ones'."""
    rows = []
    for engine in _engines(results, case):
        runs = results.of(case, engine)
        for index in range(len(runs[0].phases)):
            cost = figure([1e3 * seconds_of_client(run.phases[index]) for run in runs])
            driver = figure([run.phases[index].driver for run in runs])
            tree = figure([run.phases[index].tree for run in runs])
            clients = f"{runs[0].phases[index].clients:,}"
            ratio = _ratio(beside(results, engine, (case, index), (case, 0)))
            rows.append([clients, engine, cost.text(2), ratio, driver.text(2, _GB), tree.text(2, _GB)])
    compared = "of the first row's"
    return _table(["clients of a round", "engine", "ms a client", compared, "driver GB", "tree GB"], rows)


def _data_table(results: Results) -> str:
    rows = [
        [case, f"{made.phases[0].clients:,}", f"{made.notes['interactions']:,}", f"{made.first:.1f}"]
        for case in results.cases()
        for made in results.of(case, "data")
    ]
    return _table(["data set", "users", "interactions", "seconds, the first time"], rows)


def _against_users(results: Results, sweep: Sequence[str]) -> dict[str, dict[int, Figure]]:
    curves: dict[str, dict[int, Figure]] = {}
    for case in sweep:
        for engine in _engines(results, case):
            cost = [1e3 * seconds_of_client(run.phases[0]) for run in results.of(case, engine)]
            curves.setdefault(engine, {})[_users_of(case)] = figure(cost)
    return curves


def _against_cohort(results: Results, case: str) -> dict[str, dict[int, Figure]]:
    curves: dict[str, dict[int, Figure]] = {}
    for engine in _engines(results, case):
        runs = results.of(case, engine)
        for index, phase in enumerate(runs[0].phases):
            cost = [1e3 * seconds_of_client(run.phases[index]) for run in runs]
            curves.setdefault(engine, {})[phase.clients] = figure(cost)
    return curves


def _users_of(case: str) -> int:
    return int(case.split("-")[1])


def _of(runs: Sequence[Result], value: Callable[[Result], float]) -> Figure:
    return figure([value(run) for run in runs])


def _ratio(value: Figure | None) -> str:
    return value.text(2) if value else ""


def _bytes(value: Figure) -> str:
    return value.text(2, _MB) if value.most else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _image(path: Path, folder: Path) -> str:
    return f"![Milliseconds a client]({path.relative_to(folder)})"
