"""What is asked of a metric of one's own, each demand a function that tries it out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from math import isfinite
from numbers import Real
from typing import Any

import numpy as np

from fedmoe.check.command import Broken, Demands, Finding, findings, global_chance
from fedmoe_client.learning.metrics import Metric, metric_kind

Make = Callable[[], Metric]
ITEMS = 1000  # of the catalogue
RANKS = [1.0 + step / 2 for step in range(2 * ITEMS - 1)]  # a tie counts half


def metric_findings(name: str, parameters: Mapping[str, Any]) -> list[Finding]:
    """Try all demands. FedMoEError: the metric cannot be made."""
    kind = metric_kind("NAME")

    def make() -> Metric:
        return kind.build(name, parameters)

    make()
    return findings(FIRST, THEN, make)


def _runs(make: Make) -> str:
    metric = make()
    for rank in RANKS:
        value = metric.of(rank)
        if not isinstance(value, Real | np.bool_):
            raise Broken(f"of({rank:g}) is {value!r}: return one number")
    return f"a number for each rank from 1 to {ITEMS}, halves among them"


def _finite(make: Make) -> str:
    metric = make()
    for rank in RANKS:
        if not isfinite(value := float(metric.of(rank))):
            raise Broken(f"of({rank:g}) is {value}: one such user would spoil the mean over all")
    return ", ".join(f"{float(metric.of(rank)):.3g} at {rank:g}" for rank in (1.0, 10.0, 10.5, float(ITEMS)))


def _order(make: Make) -> str:
    metric, other = make(), make()
    forwards = {rank: float(metric.of(rank)) for rank in RANKS}
    shuffled = list(RANKS)
    random.Random(0).shuffle(shuffled)
    for found in ({rank: float(other.of(rank)) for rank in shuffled}, {r: float(metric.of(r)) for r in RANKS}):
        for rank, value in found.items():
            if value != forwards[rank]:
                raise Broken(
                    f"of({rank:g}) is {forwards[rank]:g} and {value:g}, depending on the calls before: clients are "
                    "measured in any order and in many processes, so keep nothing on self"
                )
    return "the order of the users does not matter"


def _chance(make: Make) -> str:
    found = []
    for chance in (0, 1):
        with global_chance(chance):
            metric = make()
            found.append([float(metric.of(rank)) for rank in RANKS])
    if found[0] != found[1]:
        raise Broken("the value depends on the global generators (np.random or random): a rank has one value")
    return "the value follows from the rank"


FIRST: Demands[Make] = {"runs": _runs, "values are finite": _finite}
THEN: Demands[Make] = {"chance has no part in it": _chance, "calls are apart": _order}
