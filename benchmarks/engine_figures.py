"""Medians and ratios of the engine benchmark. A ratio is taken within a repeat, where both ran side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.engine_runs import Phase, Result, Results


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


def seconds_of_client(phase: Phase) -> float:
    """Return the seconds of the warm rounds for one client."""
    return sum(phase.seconds) / (phase.clients * len(phase.seconds))


def speed_up(fast: Result, slow: Result, phase: int = 0) -> float:
    """Return how much faster the rounds of ``fast`` are, over those warm rounds that both have done."""
    of_fast, of_slow = fast.phases[phase].seconds, slow.phases[phase].seconds
    both = min(len(of_fast), len(of_slow))
    return sum(of_slow[:both]) / sum(of_fast[:both])


def pairs(results: Results, case: str, one: str, other: str) -> list[tuple[Result, Result]]:
    """Return the results of two engines in the same repeat."""
    return _in_same_repeat(results.of(case, one), results.of(case, other))


def _in_same_repeat(ones: Sequence[Result], others: Sequence[Result]) -> list[tuple[Result, Result]]:
    by_repeat = {result.repeat: result for result in others}
    return [(result, by_repeat[result.repeat]) for result in ones if result.repeat in by_repeat]


def beside(results: Results, engine: str, one: tuple[str, int], other: tuple[str, int]) -> Figure | None:
    """Return a client's cost in a phase of a case as a multiple of that in another, both given as (case, phase).

    A ratio is within a repeat of the engine; None: no repeat has both.
    """
    (case, phase), (base, base_phase) = one, other
    both = _in_same_repeat(results.of(case, engine), results.of(base, engine))
    costs = [seconds_of_client(run.phases[phase]) / seconds_of_client(least.phases[base_phase]) for run, least in both]
    return figure(costs) if costs else None


@dataclass(frozen=True)
class Ratio:
    """What is compared, how much is wanted at least, and what was measured."""

    what: str
    wanted: float
    measured: Figure


def ratios(results: Results, case: str) -> list[Ratio]:
    """Return the ratios of a job, as far as both of their engines have run."""
    found = []
    for fast, slow, wanted in (("ray", "flower", 5.0), ("vectorized", "flower", 12.0), ("vectorized", "pfl", 1.5)):
        if both := pairs(results, case, fast, slow):
            values = [speed_up(one, other) for one, other in both]
            found.append(Ratio(f"clients/s of {fast} / {slow}", wanted, figure(values)))
    for engine in ("ray", "vectorized"):
        if both := pairs(results, case, engine, "flower"):
            values = [other.first / one.first for one, other in both]
            found.append(Ratio(f"seconds to the end of the first round, flower / {engine}", 5.0, figure(values)))
    for engine, wanted in (("ray", 0.2), ("vectorized", 0.4)):
        if both := pairs(results, case, engine, "central"):
            values = [speed_up(one, other) for one, other in both]
            found.append(Ratio(f"efficiency of {engine}: central / round", wanted, figure(values)))
    return found
