"""What is asked of a metric of one's own, of a rank or of lists, each demand a function that tries it out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from math import isfinite
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmoe.check.command import Broken, Demands, Finding, findings, global_chance
from fedmoe.metrics import CatalogueMetric, Metric, metric_kind

T = TypeVar("T")
Make = Callable[[], Metric]
MakeOfLists = Callable[[], CatalogueMetric]
USERS = 20
ITEMS = 1000  # of the catalogue
RANKS = [1.0 + step / 2 for step in range(2 * ITEMS - 1)]  # a tie counts half


def metric_findings(name: str, parameters: Mapping[str, Any]) -> list[Finding]:
    """Try all demands. FedMoEError: the metric cannot be made."""
    kind = metric_kind("NAME")

    def make() -> Any:
        return kind.build(name, parameters)

    if isinstance(make(), CatalogueMetric):
        return findings(FIRST_OF_LISTS, THEN_OF_LISTS, make)
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
    if _differs_by_chance(make, lambda metric: [float(metric.of(rank)) for rank in RANKS]):
        raise Broken("the value depends on the global generators (np.random or random): a rank has one value")
    return "the value follows from the rank"


def _differs_by_chance(make: Callable[[], T], measured: Callable[[T], list[float]]) -> bool:
    """Whether the values of a fresh metric depend on the state of the global generators."""
    found = []
    for chance in (0, 1):
        with global_chance(chance):
            found.append(measured(make()))
    return found[0] != found[1]


def _lists(metric: CatalogueMetric) -> NDArray[np.int64]:
    """Return made-up lists ``[users, K]``, which the users share in part."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(ITEMS // 10)[: metric.length] + 1 for _ in range(USERS)])


def _list_length(make: MakeOfLists) -> str:
    length = make().length
    if not (isinstance(length, int) and 1 <= length <= ITEMS // 10):
        raise Broken(f"length is {length!r}: set it to the number of items of a list, from 1 to {ITEMS // 10}")
    return f"lists of {length} items"


def _runs_on_lists(make: MakeOfLists) -> str:
    metric = make()
    value = metric.of(_lists(metric), ITEMS)
    if not isinstance(value, Real | np.bool_) or not isfinite(float(value)):
        raise Broken(f"of(lists, {ITEMS}) is {value!r}: return one finite number")
    return f"{float(value):.3g} of {USERS} users"


def _users_in_any_order(make: MakeOfLists) -> str:
    metric = make()
    lists = _lists(metric)
    values = [float(metric.of(each, ITEMS)) for each in (lists, lists[::-1].copy(), lists)]
    if abs(values[0] - values[1]) > 1e-9 * max(1.0, abs(values[0])) or values[0] != values[2]:
        raise Broken(
            f"{values[0]:g}, {values[1]:g} with the users in the other order, then {values[2]:g}: clients answer in "
            "any order and are measured many times, so keep nothing on self, and let no user come first"
        )
    return "the order of the users does not matter"


def _chance_on_lists(make: MakeOfLists) -> str:
    if _differs_by_chance(make, lambda metric: [float(metric.of(_lists(metric), ITEMS))]):
        raise Broken("the value depends on the global generators (np.random or random): lists have one value")
    return "the value follows from the lists"


FIRST: Demands[Make] = {"runs": _runs, "values are finite": _finite}
THEN: Demands[Make] = {"chance has no part in it": _chance, "calls are apart": _order}
FIRST_OF_LISTS: Demands[MakeOfLists] = {"length": _list_length, "runs": _runs_on_lists}
THEN_OF_LISTS: Demands[MakeOfLists] = {
    "chance has no part in it": _chance_on_lists,
    "calls are apart": _users_in_any_order,
}
