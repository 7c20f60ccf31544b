"""The trimmed mean over those who touched an item, by hand; and what it does to attackers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from strategy_fakes import content, f32, grid_of, model, record, run_rounds, same_bytes, schedule

from fedmoe.errors import FedMoEError
from strategies import PartialAggregation, RobustRows, build_strategy
from strategies.rules.robust_rows import drop_long_rows, trimmed_rows


def mean_of(clients: dict[int, dict[str, Any]], examples: Any = 1, **parameters: Any) -> dict[str, np.ndarray]:
    """The robust mean for a model of zeros: a table of three rows of one number, and two dense numbers."""
    start = record({"table": f32(np.zeros((3, 1))), "w": f32([0, 0])})
    unchanged = {"table": f32(np.zeros((3, 1))), "w": f32([0, 0])}
    grid = grid_of(len(clients), lambda client, message: content(unchanged | clients[client], examples))
    strategy = RobustRows(build_strategy("fedavg", {}), table="table", **parameters)
    messages = strategy.configure_train(1, start, ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}


def test_rows_are_trimmed_over_those_who_touched_them() -> None:
    updates = np.zeros((5, 3, 1))
    updates[:4, 1, 0] = [1, 2, 3, 100]  # cut 1 and 100: 2.5, from four of five clients
    updates[2, 2, 0] = 6  # one client: nothing can be cut off, so its own value counts
    assert trimmed_rows(updates, 1)[:, 0].tolist() == [0.0, pytest.approx(2.0), pytest.approx(1.2)]
    assert trimmed_rows(updates, 3)[:, 0].tolist() == trimmed_rows(updates, 1)[:, 0].tolist()
    assert trimmed_rows(updates, 0)[1, 0] == pytest.approx(106 / 5)


@given(st.permutations(range(6)), st.integers(0, 6))
def test_the_order_of_clients_does_not_matter_and_the_mean_stays_within(order: list[int], bad: int) -> None:
    updates = np.random.default_rng(3).normal(size=(6, 4, 2))
    updates[:3, 1] = 0
    found = trimmed_rows(updates, bad)
    assert np.allclose(found, trimmed_rows(updates[order], bad))
    assert (np.abs(found) <= np.abs(updates).max(axis=0) + 1e-12).all()


def test_a_row_that_moves_too_far_is_dropped() -> None:
    updates = [f32([[0, 0], [3, 4], [1, 0]]), f32([[0, 0], [0, 4], [0, 0]]), f32([[9, 0], [0, 3], [0, 8]])]
    drop_long_rows(updates, 1.6)  # the longest are 5, 4 and 9: all above 8 go
    assert updates[2].tolist() == [[0, 0], [0, 3], [0, 8]]
    assert updates[0].tolist() == [[0, 0], [3, 4], [1, 0]]


def test_norms_are_bounded_by_the_median() -> None:
    clients = {0: {"w": f32([1, 0])}, 1: {"w": f32([0, 1])}, 2: {"w": f32([1000, 0])}}
    assert mean_of(clients, clip=2.0)["w"] == pytest.approx([1.0, 1 / 3])
    assert mean_of(clients, clip=0.0)["w"] == pytest.approx([1001 / 3, 1 / 3])


def test_a_huge_weight_counts_for_a_few() -> None:
    start = record({"table": f32(np.zeros((3, 1))), "w": f32([0, 0])})
    zero = f32(np.zeros((3, 1)))
    grid = grid_of(3, lambda c, m: content({"table": zero, "w": f32([c == 2, 1])}, 10**12 if c == 2 else 5))
    strategy = RobustRows(build_strategy("fedavg", {}), clip=0.0, table="table")
    arrays, metrics = strategy.aggregate_train(
        1, grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid))
    )
    assert arrays is not None
    assert arrays["w"].numpy() == pytest.approx([4 / 6, 1.0])
    assert metrics is not None and metrics["loss"] == 1.0


def test_two_attackers_cannot_lift_an_item_that_others_had_as_a_negative() -> None:
    honest = {client: {"table": f32([[0], [-0.01], [0]])} for client in range(8)}
    bad = {client: {"table": f32([[0], [5.0], [0]])} for client in (8, 9)}
    for defence in ({"trim": 0.2, "row": 0.0}, {"row": 2.0}):
        assert mean_of(honest | bad, **defence)["table"][1, 0] < 0
    assert mean_of(honest | bad, row=0.0, clip=0.0)["table"][1, 0] > 0


def test_it_is_known_by_name_and_runs_in_partial_aggregation() -> None:
    build = lambda: PartialAggregation(  # noqa: E731
        build_strategy("robust-rows", {"strategy": "fedadam", "table": "item_embedding.weight"}), schedule(2)
    )
    start = model()
    assert not same_bytes(run_rounds(build(), grid_of(5), start, range(1, 5)), start)


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(FedMoEError, match=r"trim must be in \[0, 0\.5\)"):
        RobustRows(build_strategy("fedavg", {}), trim=0.5)
    with pytest.raises(FedMoEError, match="robust-rows: FedMedian compares"):
        RobustRows(build_strategy("fedmedian", {}))
