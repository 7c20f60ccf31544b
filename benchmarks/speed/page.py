"""Medians and ratios of the measured processes, as tables and plots; docs/performance.md says what they mean."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from matplotlib.figure import Figure as Plot

from benchmarks.speed.cases import ENGINES
from benchmarks.speed.process import Result
from fedmoe_server.report.report import table

_GB, _MB = 1e9, 1e6


@dataclass(frozen=True)
class Figure:
    """The median of some values, and the smallest and largest of them."""

    median: float
    least: float
    most: float

    def text(self, digits: int = 0, unit: float = 1.0) -> str:
        """Return ``median (least-most)`` in a unit, without the range where there is one value."""
        shown = [f"{value / unit:,.{digits}f}" for value in (self.median, self.least, self.most)]
        return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]}-{shown[2]})"


def figure(values: Sequence[float]) -> Figure:
    """Return the figure of at least one value."""
    return Figure(median(values), min(values), max(values))


def speed_up(fast: Result, slow: Result) -> float:
    """Return how much faster the rounds of ``fast`` are, over those warm rounds that both have done."""
    both = min(len(fast.seconds), len(slow.seconds))
    return sum(slow.seconds[:both]) / sum(fast.seconds[:both])


def sooner(fast: Result, slow: Result) -> float:
    """Return how much earlier the first round of ``fast`` is done."""
    return slow.first / fast.first


# What is compared, the engine and the other one, and how much is wanted at least.
RATIOS: tuple[tuple[str, str, str, float, Callable[[Result, Result], float]], ...] = (
    ("clients/s of ray / flower", "ray", "flower", 5.0, speed_up),
    ("clients/s of vectorized / flower", "vectorized", "flower", 12.0, speed_up),
    ("clients/s of vectorized / pfl", "vectorized", "pfl", 1.5, speed_up),
    ("seconds to the end of the first round, flower / ray", "ray", "flower", 5.0, sooner),
    ("seconds to the end of the first round, flower / vectorized", "vectorized", "flower", 5.0, sooner),
    ("efficiency of ray: central / round", "ray", "central", 0.2, speed_up),
    ("efficiency of vectorized: central / round", "vectorized", "central", 0.4, speed_up),
)


def side_by_side(
    ones: Sequence[Result], others: Sequence[Result], ratio: Callable[[Result, Result], float]
) -> Figure | None:
    """Return the figure of a ratio of two results from the same repeat, None where no repeat has both."""
    by_repeat = {result.repeat: result for result in others}
    values = [ratio(result, by_repeat[result.repeat]) for result in ones if result.repeat in by_repeat]
    return figure(values) if values else None


class Figures:
    """The tables and plots of all results.

    made: of each case, how many users, items and interactions it has, and the seconds that this took.
    """

    def __init__(self, made: Mapping[str, Mapping[str, Any]], results: Sequence[Result]) -> None:
        self.made, self.results = made, results

    def text(self, left_out: Mapping[str, str], command: str, folder: Path) -> str:
        """Return all tables in Markdown; the plots are written into ``images`` in the folder."""
        repeats = max((result.repeat for result in self.results), default=0) + 1
        versions = ", ".join(f"{name} {version(name)}" for name in ("flwr", "ray", "torch"))
        cores, memory = os.cpu_count() or 1, psutil.virtual_memory().total / 2**30
        machine = f"{cores} cores ({platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"
        parts = [f"    {command}", f"{machine}, {versions}; medians of {repeats} repeats."]
        for case in self.made:
            if case.startswith("ml-"):
                parts += [self._job(case), self._ratios(case)]
        sweep = [case for case in self.made if case.startswith("synthetic-")]
        most = max(map(_users, sweep), default=0)
        first = _cohort(sweep[0]) if sweep else 0
        points = {case: _users(case) for case in sorted(sweep, key=_users) if _cohort(case) == first}
        parts += self._against(points, "users", folder, "cost-users.png")
        points = {case: _cohort(case) for case in sweep if _users(case) == most}
        parts += self._against(points, f"clients of a round, {most:,} users", folder, "cost-cohort.png")
        parts += [self._job(case) for case in self.made if case.startswith("catalogue-")]
        rows = [[c, f"{m['users']:,}", f"{m['interactions']:,}", f"{m['seconds']:.1f}"] for c, m in self.made.items()]
        parts.append(table(["data set", "users", "interactions", "seconds to make it"], rows))
        parts.append("\n".join(f"* {engine} is left out: {reason}" for engine, reason in left_out.items()))
        return "\n\n".join(part for part in parts if part)

    def of(self, case: str, engine: str) -> list[Result]:
        """Return the results of an engine in a case."""
        return [result for result in self.results if (result.case, result.engine) == (case, engine)]

    def _job(self, case: str) -> str:
        made, rows = self.made[case], []
        for engine in ENGINES:
            if runs := self.of(case, engine):
                first = "" if engine == "central" else _of(runs, lambda run: run.first).text(1)
                speed, cost = _of(runs, lambda run: 1 / run.seconds_of_client), _cost(runs)
                sent = [_of(runs, lambda run: run.down), _of(runs, lambda run: run.up)]
                mb = [each.text(2, _MB) if each.most else "" for each in sent]
                rows.append([engine, speed.text(), cost.text(2), first, *_memory(runs), *mb])
        stand_in = ", a synthetic stand-in" if made["dataset"] == "synthetic" and case.startswith("ml-") else ""
        sampled = [f", {result.clients:,} sampled" for result in self.results if result.case == case][:1]
        title = f"## {case}{stand_in}: {made['users']:,} users, {made['items']:,} items{''.join(sampled)}"
        head = "engine, clients/s, ms a client, first round s, driver GB, tree GB, MB down, MB up"
        return f"{title}\n\n{table(head.split(', '), rows)}"

    def _ratios(self, case: str) -> str:
        found = [
            (what, wanted, side_by_side(self.of(case, one), self.of(case, other), ratio))
            for what, one, other, wanted, ratio in RATIOS
        ]
        rows = [[what, f"{wanted:g}", measured.text(2)] for what, wanted, measured in found if measured]
        return table(["ratio", "wanted, at least", "measured"], rows) if rows else ""

    def _against(self, points: Mapping[str, int], x: str, folder: Path, picture: str) -> list[str]:
        """Return a table of a client's cost against the users or the cohort of some cases, and its plot."""
        rows, plot = [], Plot(figsize=(6.4, 3.8), layout="constrained")
        axes = plot.subplots()
        for engine in ENGINES:
            found = {case: runs for case in points if (runs := self.of(case, engine))}
            for case, runs in found.items():
                ratio = side_by_side(runs, next(iter(found.values())), _ratio)
                cells = [_cost(runs).text(2), ratio.text(2) if ratio else "", _of(runs, lambda run: run.first).text(1)]
                rows.append([f"{points[case]:,}", engine, *cells, *_memory(runs)])
            costs = sorted(((points[case], _cost(runs)) for case, runs in found.items()), key=lambda point: point[0])
            ranges = [[cost.median - cost.least for _, cost in costs], [cost.most - cost.median for _, cost in costs]]
            if costs:
                xs, ys = [place for place, _ in costs], [cost.median for _, cost in costs]
                axes.errorbar(xs, ys, yerr=ranges, marker="o", capsize=3, label=engine)
        if not rows:
            return []
        axes.set(xscale="log", xlabel=x, ylabel="milliseconds a client")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
        (folder / "images").mkdir(parents=True, exist_ok=True)
        plot.savefig(folder / "images" / picture, dpi=120)
        head = [x, "engine", "ms a client", "of the first row's", "first round s", "driver GB", "tree GB"]
        return [f"## Against {x}", table(head, rows, (0, 1)), f"![Milliseconds a client](images/{picture})"]


def _ratio(run: Result, first: Result) -> float:
    return run.seconds_of_client / first.seconds_of_client


def _users(case: str) -> int:
    return int(case.split("-")[1])


def _cohort(case: str) -> int:
    return int(case.split("-")[2])


def _cost(runs: Sequence[Result]) -> Figure:
    return _of(runs, lambda run: 1e3 * run.seconds_of_client)


def _memory(runs: Sequence[Result]) -> list[str]:
    return [_of(runs, lambda run: run.driver).text(2, _GB), _of(runs, lambda run: run.tree).text(2, _GB)]


def _of(runs: Sequence[Result], value: Callable[[Result], float]) -> Figure:
    return figure([value(run) for run in runs])
