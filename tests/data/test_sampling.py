"""Random streams, negatives, packed windows and evaluation candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sampling import (
    PackedWindows,
    evaluation_candidates,
    generator,
    held_out,
    items_of_a_round,
    packed_windows,
    sample_negatives,
    training_part,
)
from fedmoe.errors import FedMoEError

KEYS = st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", "a1"]), st.lists(st.integers(0, 12), max_size=3))
CATALOGUES = st.integers(1, 60).flatmap(
    lambda num_items: st.tuples(st.just(num_items), st.sets(st.integers(1, num_items), max_size=num_items - 1))
)


def as_items(values: list[int] | range) -> np.ndarray:
    return np.array(values, np.int32)


# Streams


@given(KEYS, KEYS)
@settings(deadline=None)
def test_streams_are_equal_exactly_when_their_keys_are(
    first: tuple[int, str, list[int]], second: tuple[int, str, list[int]]
) -> None:
    draws = [generator(seed, purpose, *ids).integers(2**62, size=4).tolist() for seed, purpose, ids in (first, second)]
    assert (draws[0] == draws[1]) == (first == second)


def test_a_trailing_zero_makes_another_stream() -> None:
    assert generator(1, "x").random() != generator(1, "x", 0).random()


def test_numpy_integers_are_the_same_key() -> None:
    assert generator(3, "x", np.int64(5)).random() == generator(np.int32(3), "x", 5).random()  # type: ignore[arg-type]


# Negatives


@given(CATALOGUES, st.integers(0, 200), st.integers(0, 5))
@settings(deadline=None)
def test_negatives_are_never_excluded(catalogue: tuple[int, set[int]], size: int, seed: int) -> None:
    num_items, excluded = catalogue
    drawn = sample_negatives(np.random.default_rng(seed), num_items, as_items(sorted(excluded)), size)
    assert drawn.dtype == np.int32 and drawn.shape == (size,)
    assert set(drawn.tolist()) <= set(range(1, num_items + 1)) - excluded


def test_negatives_are_uniform_over_the_rest() -> None:
    drawn = sample_negatives(np.random.default_rng(0), 9, as_items([1, 4, 5, 9]), 50_000)
    items, counts = np.unique(drawn, return_counts=True)
    assert items.tolist() == [2, 3, 6, 7, 8]
    np.testing.assert_allclose(counts / 50_000, 0.2, atol=0.01)


def test_negatives_from_a_huge_catalogue_cost_nothing_more() -> None:
    drawn = sample_negatives(np.random.default_rng(0), 2**31 - 1, as_items([1, 2]), 1000)
    assert drawn.min() >= 3 and len(set(drawn.tolist())) == 1000


def test_when_no_item_is_left() -> None:
    everything = as_items([1, 2, 3])
    assert sample_negatives(np.random.default_rng(0), 3, everything, 0).shape == (0,)
    with pytest.raises(FedMoEError, match="no item is left to draw negatives from: all 3 items"):
        sample_negatives(np.random.default_rng(0), 3, everything, 1)


@pytest.mark.parametrize("excluded", [[0, 1], [2, 4], [2, 1], [1, 1]])
def test_a_wrong_set_of_excluded_items_is_refused(excluded: list[int]) -> None:
    with pytest.raises(ValueError, match=r"ascending, distinct and within 1\.\.3"):
        sample_negatives(np.random.default_rng(0), 3, as_items(excluded), 1)


# Candidates


def test_candidates_are_fixed_distinct_and_unseen() -> None:
    history = as_items([5, 2, 5, 9])
    first, again = (evaluation_candidates(42, 7, 30, history, 20) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(set(first.tolist())) == 20 and not set(first.tolist()) & {2, 5, 9}
    assert set(first.tolist()) <= set(range(1, 31))
    for seed, user in ((42, 8), (43, 7)):
        assert evaluation_candidates(seed, user, 30, history, 20).tolist() != first.tolist()


def test_candidates_are_uniform() -> None:
    drawn = np.concatenate([evaluation_candidates(0, user, 8, as_items([1, 6]), 2) for user in range(6000)])
    items, counts = np.unique(drawn, return_counts=True)
    assert items.tolist() == [2, 3, 4, 5, 7, 8]
    np.testing.assert_allclose(counts / len(drawn), 1 / 6, atol=0.01)


def test_all_unseen_items_can_be_candidates_but_no_more() -> None:
    assert sorted(evaluation_candidates(0, 0, 5, as_items([2, 3]), 3).tolist()) == [1, 4, 5]
    with pytest.raises(FedMoEError, match=r"user 0 has not met only 3 of 5 items, 4 candidates.*num_candidates"):
        evaluation_candidates(0, 0, 5, as_items([2, 3]), 4)


# Windows


def test_all_windows_by_hand() -> None:
    windows = packed_windows(as_items([1, 2, 3, 4, 5, 6]), 3)
    assert windows.inputs.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows.targets.tolist() == [[0, 2, 3], [4, 5, 6]]
    assert windows.starts.tolist() == [0, 2]
    assert windows.inputs.dtype == windows.targets.dtype == np.int32


def test_a_full_number_of_windows_has_no_padding() -> None:
    windows = packed_windows(as_items([7, 8, 9, 7, 8]), 2)
    assert windows.inputs.tolist() == [[7, 8], [9, 7]]
    assert windows.targets.tolist() == [[8, 9], [7, 8]]
    assert windows.starts.tolist() == [0, 2]


def test_the_latest_window() -> None:
    windows = packed_windows(as_items([1, 2, 3, 4, 5, 6]), 3, "latest")
    assert (windows.inputs.tolist(), windows.targets.tolist()) == ([[3, 4, 5]], [[4, 5, 6]])
    assert windows.starts.tolist() == [2]
    short = packed_windows(as_items([1, 2, 3]), 4, "latest")
    assert (short.inputs.tolist(), short.targets.tolist()) == ([[0, 0, 1, 2]], [[0, 0, 2, 3]])
    assert short.starts.tolist() == [0]


@pytest.mark.parametrize("which", ["all", "latest", "random"])
@pytest.mark.parametrize("items", [[], [4]])
def test_nothing_to_predict_gives_no_window(which: str, items: list[int]) -> None:
    windows = packed_windows(as_items(items), 3, which, np.random.default_rng(0))  # type: ignore[arg-type]
    assert len(windows) == 0 and windows.inputs.shape == windows.targets.shape == (0, 3)
    assert windows.starts.shape == (0,)


def check_positions(windows: PackedWindows, items: np.ndarray) -> list[int]:
    """Check every position against the training part; return the target's positions in it."""
    positions = []
    for row, start in enumerate(windows.starts.tolist()):
        real = np.flatnonzero(windows.inputs[row])
        assert (windows.targets[row] != 0).tolist() == (windows.inputs[row] != 0).tolist()
        assert real.tolist() == list(range(len(windows.inputs[row]) - len(real), len(windows.inputs[row])))
        for step, column in enumerate(real.tolist()):
            assert windows.inputs[row, column] == items[start + step]
            assert windows.targets[row, column] == items[start + step + 1]
            positions.append(start + step + 1)
    return positions


@given(st.integers(2, 40), st.integers(1, 12))
@settings(deadline=None)
def test_all_windows_cover_every_target_exactly_once(count: int, length: int) -> None:
    items = as_items(range(1, count + 1))
    windows = packed_windows(items, length)
    assert check_positions(windows, items) == list(range(1, count))
    assert (windows.inputs[1:] != 0).all()  # only the earliest may be short


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 9))
@settings(deadline=None)
def test_a_random_window_is_one_piece_of_the_training_part(count: int, length: int, seed: int) -> None:
    items = as_items(range(1, count + 1))
    windows = packed_windows(items, length, "random", np.random.default_rng(seed))
    positions = check_positions(windows, items)
    assert len(windows) == 1 and len(positions) == min(length, positions[-1])


def test_a_random_window_ends_anywhere() -> None:
    rng = np.random.default_rng(0)
    ends = [int(packed_windows(as_items([1, 2, 3, 4, 5]), 2, "random", rng).targets[0, -1]) for _ in range(4000)]
    values, counts = np.unique(ends, return_counts=True)
    assert values.tolist() == [2, 3, 4, 5]
    np.testing.assert_allclose(counts / 4000, 0.25, atol=0.03)


def test_a_random_window_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="need a generator"):
        packed_windows(as_items([1, 2, 3]), 2, "random")


def test_what_a_round_costs_each_user() -> None:
    offsets = np.array([0, 5, 45, 50])
    assert items_of_a_round(offsets, 10, "all", 2).tolist() == [5, 20, 5]
    assert items_of_a_round(offsets, 10, "all", 0).tolist() == [5, 40, 5]
    assert items_of_a_round(offsets, 10, "latest", 2).tolist() == [5, 10, 5]


HISTORY = np.array([4, 8, 1, 9, 2], np.int32)


def test_the_last_item_is_tested_and_the_one_before_validates() -> None:
    assert training_part(HISTORY).tolist() == [4, 8, 1]
    context, target = held_out(HISTORY, "validation")
    assert (context.tolist(), target) == ([4, 8, 1], 9)
    context, target = held_out(HISTORY, "test")
    assert (context.tolist(), target) == ([4, 8, 1, 9], 2)


def test_the_shortest_history() -> None:
    assert training_part(HISTORY[:3]).tolist() == [4]
    assert held_out(HISTORY[:3], "validation")[0].tolist() == [4]


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="2 items cannot be split"):
        held_out(HISTORY[:2], "test")
    with pytest.raises(ValueError, match="not 'train'"):
        held_out(HISTORY, "train")  # type: ignore[arg-type]
