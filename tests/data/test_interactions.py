"""Histories: order, ties, dropped users, numbering, memory maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.interactions import (
    Codes,
    Events,
    from_events,
    id_order,
    offsets_of,
    rows_to_keep,
    sorted_by_item,
    time_span,
    withheld,
    without_short_users,
)
from data.sampling import Interactions
from fedmoe.errors import FedMoEError

IDS = st.sampled_from(["1", "2", "10", "33", "x"])
EVENTS = st.lists(st.tuples(IDS, IDS, st.integers(0, 3)), min_size=1, max_size=40)


def columns(events: list[tuple[str, str, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, items, times = zip(*events, strict=True)
    return np.array(users), np.array(items), np.array(times)


def test_by_hand() -> None:
    users = np.array([7, 5, 7, 5, 7, 9])
    items = np.array([20, 3, 3, 100, 100, 55])
    times = np.array([5, 1, 2, 1, 5, 0])
    interactions, dropped = from_events(users, items, times, min_items=2)
    assert dropped == 1  # user 9
    assert interactions.user_ids.tolist() == ["5", "7"]
    assert interactions.item_ids.tolist() == ["", "3", "20", "100"]  # by value; 55 is gone with its user
    assert interactions.history(0).tolist() == [1, 3]  # a tie: as in the file
    assert interactions.history(1).tolist() == [1, 2, 3]
    assert interactions.items.dtype == np.int32 and interactions.offsets.dtype == np.int64


def test_without_times_the_file_order_stays() -> None:
    interactions, _ = from_events(np.array([1, 2, 1, 2, 1]), np.array(["c", "b", "a", "c", "b"]), None, min_items=1)
    assert interactions.history(0).tolist() == [3, 1, 2]
    assert interactions.history(1).tolist() == [2, 3]


def test_codes_with_unused_names_give_the_same_as_plain_columns() -> None:
    plain, _ = from_events(np.array(["b", "a", "b"]), np.array(["y", "y", "x"]), None, 1)
    users = Codes(np.array(["z", "b", "a"]), np.array([1, 2, 1], np.int32))
    items = Codes(np.array(["y", "w", "x"]), np.array([0, 0, 2], np.int32))
    coded, dropped = from_events(users, items, None, 1)
    assert dropped == 0  # 'z' never occurs
    for name in ("items", "offsets", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(coded, name), getattr(plain, name))


def test_ids_sort_by_value_once_the_other_names_are_gone() -> None:
    interactions, dropped = from_events(np.array(["a", "a", "b"]), np.array(["10", "9", "x"]), None, 2)
    assert dropped == 1 and interactions.item_ids.tolist() == ["", "9", "10"]
    assert interactions.history(0).tolist() == [2, 1]


def test_integer_ids_sort_by_value_and_others_as_strings() -> None:
    assert np.array(["10", "9", "-1"])[id_order(np.array(["10", "9", "-1"]))].tolist() == ["-1", "9", "10"]
    assert np.array(["10", "9", "a"])[id_order(np.array(["10", "9", "a"]))].tolist() == ["10", "9", "a"]
    assert np.array(["7", "07"])[id_order(np.array(["7", "07"]))].tolist() == ["07", "7"]


@given(EVENTS, st.integers(1, 4))
@settings(deadline=None)
def test_each_kept_history_is_a_stable_sort_of_the_users_rows(events: list[tuple[str, str, int]], least: int) -> None:
    users, items, times = columns(events)
    expected = {
        user: [event[1] for event in sorted((e for e in events if e[0] == user), key=lambda event: event[2])]
        for user in set(users.tolist())
    }
    kept = {user: history for user, history in expected.items() if len(history) >= least}
    if not kept:
        with pytest.raises(FedMoEError, match=rf"no user has {least} items.*lower data.min_items"):
            from_events(users, items, times, least)
        return
    interactions, dropped = from_events(users, items, times, least)
    found = {
        user: interactions.item_ids[interactions.history(number)].tolist()
        for number, user in enumerate(interactions.user_ids.tolist())
    }
    assert found == kept
    assert dropped == len(expected) - len(kept)
    assert set(interactions.item_ids[1:].tolist()) == {item for history in kept.values() for item in history}


@given(EVENTS, st.integers(0, 99))
@settings(deadline=None)
def test_numbering_does_not_depend_on_the_order_of_the_file(events: list[tuple[str, str, int]], seed: int) -> None:
    shuffled = [events[row] for row in np.random.default_rng(seed).permutation(len(events))]
    first, second = (from_events(*columns(rows), 1)[0] for rows in (events, shuffled))
    np.testing.assert_array_equal(first.user_ids, second.user_ids)
    np.testing.assert_array_equal(first.item_ids, second.item_ids)


def test_unfitting_histories_are_refused() -> None:
    with pytest.raises(FedMoEError, match="do not fit together: 2 users, 3 offsets up to 3, 1 items"):
        Interactions(np.ones(1, np.int32), np.array([0, 2, 3]), np.array(["1", "2"]), np.array(["", "5"]))


def test_an_unknown_user_is_refused() -> None:
    interactions, _ = from_events(np.array([1]), np.array([5]), None, 1)
    for user in (-1, 1):
        with pytest.raises(FedMoEError, match=f"user {user} does not exist.* 0 to 0"):
            interactions.history(user)


def test_short_users_are_dropped_and_the_catalogue_stays() -> None:
    interactions, _ = from_events(np.array([1, 2, 2, 3, 3]), np.array([5, 6, 7, 7, 7]), None, 1)
    left, dropped = without_short_users(interactions, 2)
    assert dropped == 1 and left.user_ids.tolist() == ["2", "3"] and left.num_items == 3
    assert [left.history(user).tolist() for user in range(2)] == [[2, 3], [3, 3]]
    assert without_short_users(interactions, 1) == (interactions, 0)
    with pytest.raises(FedMoEError, match="no user has 3 items"):
        without_short_users(interactions, 3)


def test_duplicates_and_repeats_are_counted_and_dropped_as_asked() -> None:
    # a-x at 3 twice (a duplicate), a-x at 1 (so the one at 3 is a repeat), b-x once.
    users = Codes(np.array(["a", "b"]), np.array([0, 0, 0, 1, 0]))
    items = Codes(np.array(["x", "y"]), np.array([0, 0, 0, 0, 1]))
    events = Events(users, items, np.array([3, 3, 1, 3, 2]))
    rows, notes = rows_to_keep(events, "drop", "keep")
    assert rows.tolist() == [True, False, True, True, True]
    assert notes == ["1 duplicate rows dropped", "1 repeats of an item by its user kept"]
    assert rows_to_keep(events, "keep", "keep")[0].all()
    assert rows_to_keep(events, "drop", "drop")[0].tolist() == [False, False, True, True, True]
    untimed, notes = rows_to_keep(events._replace(times=None), "drop", "drop")
    assert untimed.tolist() == [True, False, False, True, True]
    assert notes == ["2 repeats of an item by its user dropped"]


def test_the_span_of_times_is_told_where_they_are_seconds() -> None:
    assert time_span(np.array([881250949, 893286638])) == ["1997-12-04 to 1998-04-22"]
    assert time_span(np.array([1, 2])) == time_span(None) == []


@pytest.mark.parametrize(("second", "told"), [([2, 3, 7], True), ([3, 2, 7], False)])
def test_a_file_that_is_sorted_by_item_is_told(second: list[int], told: bool) -> None:
    items, ids = np.array([5, 6, 7, *second], np.int32), np.array(["", *"abcdefg"])
    found = sorted_by_item(Interactions(items, np.array([0, 3, 6]), np.array(["u", "v"]), ids))
    assert [note[:16] for note in found] == ["items ascend by "] * told


def test_new_items_leave_all_histories_and_their_last_interaction_is_kept_as_a_case() -> None:
    # Of 5 items round(.4 * 5) = 2 are withheld. Whichever they are, the cases can be told by hand from the histories.
    users = [[1, 2, 3, 4, 5, 1, 3], [5, 4, 3, 2, 1, 5, 2], [2, 2, 2, 2, 4, 4, 1], [3, 1]]
    ids = np.array(["", "a", "b", "c", "d", "e"])
    whole = Interactions(
        np.concatenate([np.array(items, np.int32) for items in users]),
        offsets_of([len(items) for items in users]),
        np.array(["u", "v", "w", "x"]),
        ids,
    )
    left, new, dropped = withheld(whole, 0.4, seed=3, min_items=3)
    chosen = set(new.items.tolist())
    assert len(chosen) == 2 and left.num_items == 5
    kept = {user: [item for item in items if item not in chosen] for user, items in zip("uvwx", users, strict=True)}
    stay = [user for user in "uvwx" if len(kept[user]) >= 3]
    assert left.user_ids.tolist() == stay and dropped == 4 - len(stay) and dropped >= 1
    cases = dict(zip(new.users.tolist(), range(len(new.users)), strict=True))
    for number, user in enumerate(stay):
        assert left.history(number).tolist() == kept[user]
        items = users["uvwx".index(user)]
        places = [place for place, item in enumerate(items) if item in chosen]
        before = [[item for item in items[:place] if item not in chosen] for place in places]
        if not places or not before[-1]:
            assert number not in cases
            continue
        context, target = new.case(number, left.history(number))
        assert (context.tolist(), target) == (before[-1], items[places[-1]])
    assert withheld(whole, 0.4, seed=3, min_items=3)[1].items.tolist() == new.items.tolist()
    assert len({tuple(withheld(whole, 0.4, seed, 3)[1].items.tolist()) for seed in (2, 3, 5, 8)}) > 1
    with pytest.raises(FedMoEError, match=r"data.new_items=0.01 withholds none of 5 items - raise it"):
        withheld(whole, 0.01, seed=3, min_items=3)


def test_a_user_who_met_new_items_alone_at_first_has_no_case() -> None:
    whole = Interactions(
        np.array([1, 2, 2, 2, 1, 1, 1], np.int32), offsets_of([4, 3]), np.array(["u", "v"]), np.array(["", "a", "b"])
    )
    left, new, _ = withheld(whole, 0.5, seed=0, min_items=1)
    other = 3 - int(new.items[0])
    assert left.history(0).tolist() == [other] * (1 if other == 1 else 3)
    assert new.users.tolist() == ([0] if other == 1 else [])
    with pytest.raises(FedMoEError, match="user 5 has met none of the 1 new items"):
        new.case(5, left.history(0))
