"""Norm clipping against the round's median, by hand and as a strategy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st
from strategy_fakes import content, f32, grid_of, ordered, record, run_rounds, values

from strategies import AggregationSchedule, OutlierClipping, PartialAggregation, build_strategy
from strategies.check.contract import findings

PLAN = AggregationSchedule({"body": ["w"], "gate": ["g"]}, 0, [], ["body", "gate"])
START = {"w": f32([1.0, 1.0]), "g": np.float32(1.0)}


def mean_of(updates: Sequence[Sequence[float]], multiple: float) -> tuple[np.ndarray, OutlierClipping]:
    """One round in which client k moves w and the gate by updates[k]; all weights 1. Returns the mean update [3]."""

    def answer(client: int, message: Message) -> RecordDict:
        x, y, z = updates[client]
        return content({"w": START["w"] + f32([x, y]), "g": np.float32(START["g"] + np.float32(z))})

    grid = grid_of(len(updates), answer)
    clipping = OutlierClipping(FedAvg(min_train_nodes=1, min_available_nodes=1), multiple)
    end = values(run_rounds(ordered(PartialAggregation(clipping, PLAN), grid), grid, record(START), [1]))
    return np.array([*(end["w"] - START["w"]), end["g"] - START["g"]]), clipping


def test_by_hand() -> None:
    # Norms 5, 3, 100: the median is 5, twice of it 10; the third is scaled by 1/10.
    mean, clipping = mean_of([(3, 4, 0), (0, 0, 3), (0, 100, 0)], 2.0)
    np.testing.assert_allclose(mean, [1, 14 / 3, 1], rtol=1e-6)
    (only,) = clipping.clippings
    assert (only.node_id, only.norm, only.bound) == (1002, pytest.approx(100), pytest.approx(10))
    assert PartialAggregation(clipping, PLAN).clippings == [only]


def test_off_and_within_the_bound_hand_on_the_replies() -> None:
    for multiple in (0.0, 100.0):
        mean, clipping = mean_of([(3, 4, 0), (0, 0, 3), (0, 100, 0)], multiple)
        np.testing.assert_allclose(mean, [1, 104 / 3, 1], rtol=1e-6)
        assert clipping.clippings == []
    assert OutlierClipping(FedAvg(), 0.0).needs_every_reply is False
    assert OutlierClipping(FedAvg(), 3.0).needs_every_reply is True


def test_clients_without_a_change_do_not_count() -> None:
    mean, clipping = mean_of([(0, 0, 0), (0, 0, 0), (0, 0, 0), (2, 0, 0)], 1.0)
    np.testing.assert_allclose(mean, [0.5, 0, 0])
    assert clipping.clippings == []
    assert mean_of([(0, 0, 0), (0, 0, 0)], 1.0)[0].tolist() == [0, 0, 0]


def test_the_largest_numbers_there_are() -> None:
    mean, clipping = mean_of([(1, 0, 0), (1, 0, 0), (3e38, -3e38, 3e38)], 2.0)
    assert np.isfinite(mean).all()
    assert np.abs(mean).max() <= (1 + 1 + 2) / 3
    assert len(clipping.clippings) == 1


@given(st.lists(st.tuples(*3 * [st.integers(-100, 100)]), min_size=3, max_size=7), st.floats(1, 5))
def test_a_minority_moves_the_mean_by_a_bounded_amount(updates: list[tuple[float, float, float]], c: float) -> None:
    mean, clipping = mean_of(updates, c)
    norms = [float(np.linalg.norm(f32(update))) for update in updates]
    changes = [norm for norm in norms if norm > 0]
    bound = c * float(np.median(changes)) if changes else 0.0
    assert float(np.linalg.norm(mean)) <= bound + 1e-3 + 1e-5 * max(norms)
    for clipped in clipping.clippings:
        assert clipped.norm > clipped.bound


@pytest.mark.parametrize("inner", ["fedavg", "fedadam", "fedmedian"])
def test_it_meets_the_demands_on_a_strategy(inner: str) -> None:
    found = findings(lambda: OutlierClipping(build_strategy(inner, {}), 1.0))
    assert [str(finding) for finding in found if not finding.holds] == []
