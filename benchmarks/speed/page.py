"""Medians and ratios of the measured processes, as tables and plots; docs/performance.md says what they mean."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure

from benchmarks.speed.cases import CENTRAL, ENGINES
from benchmarks.speed.process import Result
from fedmoe_server.report.report import table

Runs = Mapping[tuple[str, str], Sequence[Result]]
"""(case, engine) -> one result a repeat."""
Ratio = Callable[[Result, Result], float]
GB, MB = 1e9, 1e6


def speed_up(fast: Result, slow: Result) -> float:
    """Return how much faster the rounds of ``fast`` are, over those warm rounds that both have done."""
    both = min(len(fast.seconds), len(slow.seconds))
    return sum(slow.seconds[:both]) / sum(fast.seconds[:both])


def sooner(fast: Result, slow: Result) -> float:
    """Return how much earlier the first round of ``fast`` is done."""
    return slow.first / fast.first


def cost(run: Result, other: Result) -> float:
    """Return what a client costs, as a multiple of what it costs in another case."""
    return run.seconds_of_client / other.seconds_of_client


# What is compared, the engine and the other one, and how much is wanted at least.
RATIOS: tuple[tuple[str, str, str, float, Ratio], ...] = (
    ("clients/s of ray / flower", "ray", "flower", 5.0, speed_up),
    ("clients/s of vectorized / flower", "vectorized", "flower", 12.0, speed_up),
    ("clients/s of vectorized / pfl", "vectorized", "pfl", 2.5, speed_up),
    ("seconds to the end of the first round, flower / ray", "ray", "flower", 5.0, sooner),
    ("seconds to the end of the first round, flower / vectorized", "vectorized", "flower", 5.0, sooner),
    ("efficiency of ray: central / round", "ray", "central", 0.2, speed_up),
    ("efficiency of vectorized: central / round", "vectorized", "central", 0.95, speed_up),
    ("central training: SASRec / mixture", "central", "central SASRec", 0.5, speed_up),
)


def figure(values: Sequence[float], digits: int = 0, unit: float = 1.0) -> str:
    """Return ``median (least-most)`` in a unit, without the range where there is one value; empty: no values."""
    shown = [f"{of(values) / unit:,.{digits}f}" for of in (median, min, max)] if values else [""]
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} ({shown[1]}-{shown[2]})"


def side_by_side(runs: Runs, one: tuple[str, str], other: tuple[str, str], ratio: Ratio) -> list[float]:
    """Return the ratios of two engines' results, both given as (case, engine), from the same repeats."""
    others = {result.repeat: result for result in runs.get(other, ())}
    return [ratio(result, others[result.repeat]) for result in runs.get(one, ()) if result.repeat in others]


def page(
    made: Mapping[str, Mapping[str, Any]],
    results: Sequence[Result],
    left_out: Mapping[str, str],
    command: str,
    folder: Path,
) -> str:
    """Return all tables in Markdown; the plots are written into ``images`` in the folder.

    made: of each case, how many users, items and interactions it has, and the seconds that this took.
    """
    runs: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        runs.setdefault((result.case, result.engine), []).append(result)
    versions = ", ".join(f"{name} {version(name)}" for name in ("flwr", "ray", "torch"))
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"
    repeats = max((result.repeat for result in results), default=0) + 1
    parts = [f"    {command}", f"{machine}, {versions}; medians of {repeats} repeats."]
    for case, about in made.items():
        if not case.startswith(("synthetic-", "catalogue-")):
            clients = next((result.clients for result in results if result.case == case), 0)
            parts.append(f"## {case}: {about['users']:,} users, {about['items']:,} items, {clients:,} sampled")
            parts += [_costs(case, runs), _ratios(case, runs)]
    sweep = {case: [int(number) for number in case.split("-")[1:]] for case in made if case.startswith("synthetic-")}
    if sweep:
        most, usual = max(users for users, _ in sweep.values()), next(iter(sweep.values()))[1]
        users = {case: users for case, (users, cohort) in sorted(sweep.items()) if cohort == usual}
        cohorts = {case: cohort for case, (users, cohort) in sweep.items() if users == most}
        parts += _against(dict(sorted(users.items(), key=lambda point: point[1])), "users", "users", runs, folder)
        parts += _against(cohorts, "cohort", f"clients of a round, {most:,} users", runs, folder)
    if items := {case: about["items"] for case, about in made.items() if case.startswith("catalogue-")}:
        about = next(about for case, about in made.items() if case in items)
        clients = next((result.clients for result in results if result.case in items), 0)
        x = f"items of the catalogue, {about['users']:,} users, {clients:,} sampled"
        parts += _against(items, "items", x, runs, folder)
    rows = [[case, f"{a['users']:,}", f"{a['interactions']:,}", f"{a['seconds']:.1f}"] for case, a in made.items()]
    parts.append(table(["data set", "users", "interactions", "seconds to make it"], rows))
    parts.append("\n".join(f"* {engine} is left out: {reason}" for engine, reason in left_out.items()))
    return "\n\n".join(part for part in parts if part)


def _costs(case: str, runs: Runs) -> str:
    rows = []
    for engine in ENGINES:
        if found := runs.get((case, engine)):
            first = "" if engine in CENTRAL else figure([run.first for run in found], 1)
            sent = ([run.down for run in found], [run.up for run in found])
            speed, (ms, *memory) = figure([1 / run.seconds_of_client for run in found]), _ms_and_memory(found)
            rows.append([engine, speed, ms, first, *memory, *(figure(s, 2, MB) if any(s) else "" for s in sent)])
    head = "engine, clients/s, ms a client, first round s, driver GB, tree GB, MB down, MB up"
    return table(head.split(", "), rows)


def _ratios(case: str, runs: Runs) -> str:
    found = [(r[0], f"{r[3]:g}", figure(side_by_side(runs, (case, r[1]), (case, r[2]), r[4]), 2)) for r in RATIOS]
    rows = [row for row in found if row[2]]
    return table(["ratio", "wanted, at least", "measured"], rows) if rows else ""


def _against(points: Mapping[str, int], name: str, x: str, runs: Runs, folder: Path) -> list[str]:
    """Return a table of a client's cost against the users, the cohort or the items of some cases, and its plot."""
    plot, rows = Figure(figsize=(6.4, 3.8), layout="constrained"), []
    axes = plot.subplots()
    for engine in ENGINES:
        found = {case: runs[case, engine] for case in points if (case, engine) in runs}
        for case, of_case in found.items():
            ms, *memory = _ms_and_memory(of_case)
            ratio = figure(side_by_side(runs, (case, engine), (next(iter(found)), engine), cost), 2)
            rows.append([f"{points[case]:,}", engine, ms, ratio, figure([run.first for run in of_case], 1), *memory])
        order = sorted(found, key=points.__getitem__)
        costs = [[1e3 * run.seconds_of_client for run in found[case]] for case in order]
        if costs:
            ys = np.array([(median(c), median(c) - min(c), max(c) - median(c)) for c in costs])
            axes.errorbar([points[case] for case in order], ys[:, 0], ys[:, 1:].T, marker="o", capsize=3, label=engine)
    if not rows:
        return []
    axes.set(xscale="log", xlabel=x, ylabel="milliseconds a client")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    picture = f"images/cost-{name}.png"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    plot.savefig(folder / picture, dpi=120)
    head = [x, "engine", "ms a client", "of the first row's", "first round s", "driver GB", "tree GB"]
    return [f"## Against {x}", table(head, rows, (0, 1)), f"![Milliseconds a client]({picture})"]


def _ms_and_memory(runs: Sequence[Result]) -> list[str]:
    memory = [[run.driver for run in runs], [run.tree for run in runs]]
    return [figure([1e3 * run.seconds_of_client for run in runs], 2), *(figure(each, 2, GB) for each in memory)]
