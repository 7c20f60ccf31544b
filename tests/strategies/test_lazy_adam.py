"""LazyAdam: FedAdam where every row moves, and rows that nobody trained stay as they are with their moments."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from strategy_fakes import content, f32, grid_of, ordered, record, run_rounds, values

from fedmoe.wire import ROWS
from strategies import AggregationSchedule, PartialAggregation, build_strategy
from strategies.layers import reply_mean
from strategies.rules.row_wise import ITEM_TABLE

PLAN = AggregationSchedule({"embedding": [ITEM_TABLE], "backbone": ["body"]}, 0, [], ["embedding", "backbone"])
START = {ITEM_TABLE: f32([[0, 0], [1, 1], [2, 2], [3, 3]]), "body": f32([0.0])}
ADAM = {"eta": 0.1, "beta_1": 0.5, "beta_2": 0.5, "tau": 1.0}
Moves = dict[int, list[float]]  # row -> what is added to it


def after(name: str, rounds: list[list[Moves]], in_place: bool = False, as_rows: bool = False) -> dict[str, np.ndarray]:
    """Rounds of clients that move rows of the table, and the body by 1; as_rows: the others do not travel."""
    number = iter(range(10**6))

    def answer(client: int, message: Message) -> RecordDict:
        moves = rounds[next(number) // len(rounds[0])][client]
        sent = {key: array.numpy() for key, array in message.content.array_records["arrays"].items()}
        for row, by in moves.items():
            sent[ITEM_TABLE][row] += f32(by)
        sent["body"] += 1
        if as_rows:
            ids = np.array(sorted(moves), np.int64)
            sent |= {ITEM_TABLE: sent[ITEM_TABLE][ids], ITEM_TABLE + ROWS: ids}
        return content(sent, 1)

    grid = grid_of(len(rounds[0]), answer)
    layer = PartialAggregation(build_strategy(name, ADAM), PLAN)
    layer.in_place = in_place
    return values(run_rounds(ordered(layer, grid), grid, record(START), list(range(1, len(rounds) + 1))))


def test_by_hand() -> None:
    # Round 1: row 1 by [2, 4], so m = [1, 2] and v = [2, 8]; the rate is .1 * sqrt(1 - .25) / (1 - .25).
    # Round 2: row 2 alone; row 1 stays, which FedAdam would move on by its momentum.
    first = after("lazyadam", [[{1: [2.0, 4.0]}]])
    rate = 0.1 * np.sqrt(0.75) / 0.75
    step = rate * f32([1, 2]) / (np.sqrt(f32([2, 8])) + 1)
    np.testing.assert_allclose(first[ITEM_TABLE], [[0, 0], [1, 1] + step, [2, 2], [3, 3]], rtol=1e-6)
    both = [[{1: [2.0, 4.0]}], [{2: [1.0, 1.0]}]]
    second, dense = after("lazyadam", both), after("fedadam", both)
    np.testing.assert_array_equal(second[ITEM_TABLE][[0, 1, 3]], first[ITEM_TABLE][[0, 1, 3]])
    assert (dense[ITEM_TABLE][1] > first[ITEM_TABLE][1]).all()
    np.testing.assert_array_equal(second["body"], dense["body"])


_MOVED = st.lists(arrays(np.float32, (3, 2), elements=st.floats(0.5, 9, width=16)), min_size=4, max_size=4)


@given(_MOVED)
def test_where_every_row_moves_it_is_fedadam_to_the_bit(moves: list[np.ndarray]) -> None:
    rounds: list[list[Moves]] = [
        [{row + 1: by.tolist() for row, by in enumerate(each)} for each in moves[start : start + 2]] for start in (0, 2)
    ]
    found, wanted = after("lazyadam", rounds), after("fedadam", rounds)
    np.testing.assert_array_equal(found[ITEM_TABLE][1:], wanted[ITEM_TABLE][1:])
    np.testing.assert_array_equal(found["body"], wanted["body"])


_ROWS: Any = st.dictionaries(st.integers(1, 3), st.lists(st.floats(0.5, 9, width=16), min_size=2, max_size=2))


@given(st.lists(st.lists(_ROWS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_rows_that_travel_alone_and_tables_changed_in_place_give_the_same(rounds: list[list[Moves]]) -> None:
    wanted = after("lazyadam", rounds)
    for given_ in ({"as_rows": True}, {"in_place": True}, {"as_rows": True, "in_place": True}):
        found = after("lazyadam", rounds, **given_)
        with patch.object(reply_mean, "ROWS_AT_ONCE", 2):
            in_blocks = after("lazyadam", rounds, **given_)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
            np.testing.assert_array_equal(in_blocks[name], array)


@pytest.mark.parametrize("in_place", [False, True])
def test_only_who_allows_it_gets_a_table_changed_in_place(in_place: bool) -> None:
    seen: list[np.ndarray] = []

    def answer(client: int, message: Message) -> RecordDict:
        arrays_ = message.content.array_records["arrays"]
        seen.append(getattr(arrays_[ITEM_TABLE], "values", arrays_[ITEM_TABLE].numpy()))
        sent = {key: array.numpy() for key, array in arrays_.items()}
        sent[ITEM_TABLE][1] += 1
        return content(sent, 1)

    grid = grid_of(1, answer)
    layer = PartialAggregation(build_strategy("lazyadam", ADAM), PLAN)
    layer.in_place = in_place
    start = record(START)
    run_rounds(ordered(layer, grid), grid, start, [1, 2, 3])
    np.testing.assert_array_equal(values(start)[ITEM_TABLE], START[ITEM_TABLE])  # what came from outside never changes
    second, third = seen[1:]
    assert second is not third and np.shares_memory(second, third) == in_place
