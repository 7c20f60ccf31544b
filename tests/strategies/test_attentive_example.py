"""The example of similarity-aware aggregation: by hand, its limits, and the contract."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from strategy_fakes import content, f32, grid_of, ordered, record, run_rounds, values

from fedmoe.errors import FedMoEError
from strategies import AggregationSchedule, PartialAggregation, build_strategy
from strategies.check.contract import findings

NAME = "attentive:Attentive"
PLAN = AggregationSchedule({"body": ["w"]}, 0, [], ["body"])


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "strategies"))


def after(updates: list[Any], tau: float, examples: list[int] | None = None) -> np.ndarray:
    def answer(client: int, message: Message) -> RecordDict:
        return content({"w": f32([1, 1]) + f32(updates[client])}, examples[client] if examples else 1)

    grid = grid_of(len(updates), answer)
    strategy = build_strategy(NAME, {"strategy": "fedavg", "tau": tau})
    end = run_rounds(ordered(PartialAggregation(strategy, PLAN), grid), grid, record({"w": f32([1, 1])}), [1])
    return values(end)["w"] - f32([1, 1])


def test_by_hand() -> None:
    # Updates [2, 0] twice and [0, 2] once: the mean is [4, 2] / 3; cosines 2/sqrt(5), 2/sqrt(5), 1/sqrt(5).
    near, far = math.exp(2 / math.sqrt(5) / 0.5), math.exp(1 / math.sqrt(5) / 0.5)
    got = after([[2, 0], [2, 0], [0, 2]], tau=0.5)
    np.testing.assert_allclose(got, [4 * near / (2 * near + far), 2 * far / (2 * near + far)], rtol=1e-5)


def test_a_high_temperature_is_the_weighted_mean_and_a_low_one_follows_those_who_agree() -> None:
    updates = [[2, 0], [2, 0], [-4, 1]]
    np.testing.assert_allclose(after(updates, 1e6, [1, 1, 2]), [-1, 0.5], rtol=1e-4)
    np.testing.assert_allclose(after([[2, 0], [2, 0], [-1, 0]], 1e-3), [2, 0], rtol=1e-5)


def test_nobody_moves() -> None:
    np.testing.assert_array_equal(after([[0, 0], [0, 0]], 0.5), [0, 0])


@pytest.mark.parametrize("inner", ["fedavg", "fedadam"])
def test_it_meets_all_demands(inner: str) -> None:
    found = findings(lambda: build_strategy(NAME, {"strategy": inner}))
    assert [str(finding) for finding in found if not finding.holds] == []


def test_the_temperature_is_positive() -> None:
    with pytest.raises(FedMoEError, match="'tau' must be above 0, is 0"):
        build_strategy(NAME, {"strategy": "fedavg", "tau": 0.0})
