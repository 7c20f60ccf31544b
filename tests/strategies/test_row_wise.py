"""Row-wise item aggregation: by hand, and equal to the plain mean where every client trained every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from strategy_fakes import content, f32, grid_of, ordered, record, run_rounds, values

from strategies import AggregationSchedule, PartialAggregation, build_strategy
from strategies.check.contract import findings
from strategies.rules.row_wise import ITEM_TABLE, row_factors

PLAN = AggregationSchedule({"embedding": [ITEM_TABLE], "backbone": ["body"]}, 0, [], ["embedding", "backbone"])
START = {ITEM_TABLE: f32([[0, 0], [1, 1], [2, 2], [3, 3]]), "body": f32([0.0])}


def after(replies: list[tuple[Any, float, int]], **parameters: Any) -> dict[str, np.ndarray]:
    """One round; replies: (item table, body, weight) of each client."""

    def answer(client: int, message: Message) -> RecordDict:
        table, body, weight = replies[client]
        return content({ITEM_TABLE: f32(table), "body": f32([body])}, weight)

    grid = grid_of(len(replies), answer)
    strategy = build_strategy("rowwise", {"strategy": "fedavg", **parameters})
    return values(run_rounds(ordered(PartialAggregation(strategy, PLAN), grid), grid, record(START), [1]))


REPLIES = [
    # Rows 1 and 2 trained, weight 1; row 1 alone, weight 3; nothing, weight 4.
    ([[0, 0], [5, 1], [4, 2], [3, 3]], 8.0, 1),
    ([[0, 0], [1, 5], [2, 2], [3, 3]], 0.0, 3),
    ([[0, 0], [1, 1], [2, 2], [3, 3]], 4.0, 4),
]


def test_by_hand() -> None:
    # Row 1: [1, 1] + (1 * [4, 0] + 3 * [0, 4]) / 4 = [2, 4].  Row 2: [2, 2] + [2, 0] / 1 = [4, 2].  Row 3 stays.
    # The body is the plain mean: (1 * 8 + 3 * 0 + 4 * 4) / 8 = 3.
    end = after(REPLIES)
    np.testing.assert_allclose(end[ITEM_TABLE], [[0, 0], [2, 4], [4, 2], [3, 3]], rtol=1e-6)
    np.testing.assert_allclose(end["body"], [3.0])
    np.testing.assert_array_equal(row_factors({0: f32([[0, 1], [0, 0]]), 1: f32([[1, 0], [0, 0]])}, {0: 1, 1: 3}), 1)


def test_a_model_without_the_table_is_averaged_as_ever() -> None:
    end = after(REPLIES, table="no.such")
    np.testing.assert_allclose(end[ITEM_TABLE][1], [1 + 4 / 8, 1 + 12 / 8])


@given(st.lists(arrays(np.float32, (4, 2), elements=st.floats(0.5, 9, width=16)), min_size=1, max_size=5))
def test_where_all_trained_all_rows_it_is_the_mean(moves: list[np.ndarray]) -> None:
    replies = [(START[ITEM_TABLE] + move, 1.0, weight) for weight, move in enumerate(moves, start=1)]
    total = sum(weight for _, _, weight in replies)
    mean = sum(table * (weight / total) for table, _, weight in replies)
    np.testing.assert_allclose(after(replies)[ITEM_TABLE], mean, rtol=1e-5)


@pytest.mark.parametrize("inner", ["fedavg", "fedadam", {"name": "fedavgm", "server_momentum": 0.5}])
def test_it_meets_all_demands(inner: Any) -> None:
    found = findings(lambda: build_strategy("rowwise", {"strategy": inner}))
    assert [str(finding) for finding in found if not finding.holds] == []
