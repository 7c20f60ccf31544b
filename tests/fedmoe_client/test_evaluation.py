"""The evaluator: ranks, ties, masks, protocols, metrics - by hand and against an independent count."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sampling import Interactions
from fedmoe.settings import EvaluationSettings
from fedmoe_client.learning.evaluation import (
    mean_metrics,
    metrics_of,
    popularity_metrics,
    popularity_scorer,
    rank_of,
    ranks,
    split_metrics,
)

FULL = EvaluationSettings()
SAMPLED = EvaluationSettings(protocol="sampled", num_candidates=3)


def histories(*users: list[int], num_items: int = 9) -> Interactions:
    ids = np.array([""] + [str(item) for item in range(1, num_items + 1)])
    offsets = np.cumsum([0] + [len(user) for user in users])
    items = np.concatenate([np.array(user, np.int32) for user in users])
    return Interactions(items, offsets, np.array([str(user) for user in range(len(users))]), ids)


def scorer_of(table: dict[int, float]):  # type: ignore[no-untyped-def]
    return lambda contexts, candidates: np.vectorize(lambda item: table.get(int(item), 0.0))(candidates).astype(
        np.float32
    )


def rank(scorer, interactions: Interactions, evaluation: EvaluationSettings = FULL, split: str = "test") -> float:  # type: ignore[no-untyped-def]
    return float(ranks(scorer, interactions, [0], split, evaluation, 1, 4)[0])  # type: ignore[arg-type]


def test_seen_items_are_masked_and_ties_are_half_lost() -> None:
    # The test item 5 scores 1; item 1 was seen; 6 is above; 7 and 8 tie: 1 + 1 + 2 / 2.
    scores = {1: 9.0, 5: 1.0, 6: 2.0, 7: 1.0, 8: 1.0}
    assert rank(scorer_of(scores), histories([1, 2, 3, 4, 5])) == 3.0


def test_validation_item_counts_as_seen_for_the_test_and_the_test_item_is_unseen_for_validation() -> None:
    scores = {4: 3.0, 5: 2.0}
    assert rank(scorer_of(scores), histories([1, 2, 3, 4, 5])) == 1.0
    assert rank(scorer_of({4: 2.0, 5: 3.0}), histories([1, 2, 3, 4, 5]), split="validation") == 2.0


def test_a_target_that_was_met_before_is_ranked_with_all_that_were_met() -> None:
    assert rank(scorer_of({2: 5.0, 1: 9.0}), histories([1, 2, 3, 4, 2])) == 2.0


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_looking_for_an_item_met_before_is_no_way_to_win(protocol: Literal["full", "sampled"]) -> None:
    met = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}  # "1 if already met" finds the repeated item at once if it alone is left in
    found = rank(scorer_of(met), histories([1, 2, 3, 4, 2]), EvaluationSettings(protocol=protocol, num_candidates=8))
    assert found > 1.0


def test_constant_scores_land_in_the_middle() -> None:
    # 9 items, 4 seen: the target and 4 others, all tied.
    assert rank(scorer_of({}), histories([1, 2, 3, 4, 5])) == 3.0


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="user 0"):
        rank(scorer_of({7: np.nan}), histories([1, 2, 3, 4, 5]))


def test_sampled_candidates_are_fixed_and_unseen() -> None:
    seen = []

    def scorer(contexts, candidates):  # type: ignore[no-untyped-def]
        seen.append(candidates.tolist())
        return np.zeros(candidates.shape, np.float32)

    for _ in range(2):
        rank(scorer, histories([1, 2, 3, 4, 5]), SAMPLED)
    assert seen[0] == seen[1]
    assert seen[0][0][0] == 5
    assert len(seen[0][0]) == 4
    assert set(seen[0][0][1:]) <= {6, 7, 8, 9}


def test_contexts_hold_the_latest_items_left_padded() -> None:
    contexts = []

    def scorer(context, candidates):  # type: ignore[no-untyped-def]
        contexts.extend(context.tolist())
        return np.zeros(candidates.shape, np.float32)

    ranks(scorer, histories([1, 2, 3, 4, 5, 6], [7, 8, 9]), [0, 1], "test", FULL, 1, 4)
    assert contexts == [[2, 3, 4, 5], [0, 0, 7, 8]]


def test_metrics_by_hand() -> None:
    found = metrics_of(3.0, [5])
    assert found == {"hr@5": 1.0, "ndcg@5": 0.5, "hr@10": 1.0, "ndcg@10": 0.5}
    assert metrics_of(5.5, [5])["hr@5"] == 0.0
    assert mean_metrics(np.array([1.0, 11.0]), [5])["ndcg@10"] == 0.5


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_rank_is_the_mean_place_over_random_orders_of_the_ties(seed: int, candidates: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(1, candidates)).astype(np.float32)
    counted = rng.random((1, candidates)) < 0.7
    place = int(rng.integers(candidates))
    counted[0, place] = False
    others, own = scores[counted], scores[0, place]
    expected = 1 + (others > own).sum() + 0.5 * (others == own).sum()
    assert rank_of(scores, counted, np.array([place]))[0] == expected


def test_popularity_counts_training_parts_alone() -> None:
    interactions = histories([1, 2, 3, 4], [1, 3, 5, 6])
    candidates = np.arange(10)[None]
    assert popularity_scorer(interactions)(np.zeros((1, 1), np.int64), candidates)[0].tolist() == [
        0,
        2,
        1,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
    ]
    found = popularity_metrics(interactions, FULL, 1)
    assert found == split_metrics(popularity_scorer(interactions), interactions, FULL, 1, 4)
    assert set(found) == {"validation", "test"}
