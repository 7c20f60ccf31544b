"""Withheld items: ranks and metrics by hand, the nearest by content, and negatives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import Dataset
from data.features import ItemFeatures
from data.sampling import AMONG_NEW, NEW, Interactions, Negatives, NewItems
from fedmoe.settings import Settings
from fedmoe_client.learning.evaluation import Scorer
from fedmoe_client.learning.new_items import (
    NEIGHBOURS,
    neighbours_scorer,
    new_item_metrics,
    new_item_ranks,
    untrained_metrics,
)

ITEMS = np.array(["", *"abcdefgh"])


def data(features: dict[str, list[list[float]]] | None = None) -> Dataset:
    """Two users over eight items of which 7 and 8 are new; the second user met item 8 after its first two items."""
    histories = Interactions(np.array([1, 2, 3, 4, 2, 3, 4, 5], np.int32), np.array([0, 4, 8]), ITEMS[1:3], ITEMS)
    new = NewItems(np.array([7, 8], np.int32), np.array([1]), np.array([8], np.int32), np.array([2]))
    tables = {name: np.array([[0.0] * len(rows[0]), *rows], np.float32) for name, rows in (features or {}).items()}
    return Dataset(
        "made up", histories, {name: ItemFeatures(each, each.any(axis=1)) for name, each in tables.items()}, new=new
    )


def by(scores: list[float]) -> Scorer:
    table = np.array([0.0, *scores], np.float32)
    return lambda contexts, candidates: table[candidates]


def test_ranks_by_hand() -> None:
    # Met before: 2 and 3. Above item 8, whose score is 3: item 1; 5 and 7 tie; items 2 and 3 do not count.
    scorer = by([9, 9, 9, 1, 3, 2, 3, 3])
    assert new_item_ranks(scorer, data(), [1], 4).tolist() == [[1 + 1 + 0.5 * 2], [1 + 0.5]]
    found = new_item_metrics(scorer, data(), [1], Settings())
    assert found["rank"] == 3.0 and found["hr@10"] == 1.0 and found["ndcg@10"] == pytest.approx(0.5)
    assert found[AMONG_NEW + "ndcg@10"] == pytest.approx(1 / np.log2(2.5))


def test_the_context_ends_before_the_new_item() -> None:
    seen = []

    def scorer(contexts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        seen.append(contexts.tolist())
        return np.zeros(candidates.shape, np.float32)

    new_item_ranks(scorer, data(), [1], 4)
    assert seen == [[[2, 3]]]
    with pytest.raises(ValueError, match="gives user 1 a score that is not a number"):
        new_item_ranks(lambda contexts, candidates: np.full(candidates.shape, np.nan, np.float32), data(), [1], 4)


def test_nearest_by_content_by_hand() -> None:
    # Centred, the features are those minus (2.5, 2.5); item 4 has none in the first modality.
    one = [[5, 5], [5, 5], [0, 5], [0, 0], [5, 0], [0, 5], [5, 0], [0, 0.5]]
    dataset = data({"text": one, "picture": one})
    mean = np.array(one)[[0, 1, 2, 4, 5, 6, 7]].mean(axis=0)
    directions = (np.array(one) - mean) / np.linalg.norm(np.array(one) - mean, axis=1, keepdims=True)
    directions[3] = 0.0
    scores = neighbours_scorer(dataset)(np.array([[0, 0, 1, 3], [4, 4, 4, 4]]), np.array([[2, 4, 8], [1, 2, 3]]))
    expected = (directions[[1, 3, 7]] @ (directions[0] + directions[2])) / 2
    np.testing.assert_allclose(scores, [expected, [0, 0, 0]], atol=1e-6)


def test_popularity_has_nothing_to_say_and_content_has() -> None:
    # New item 8 has the content of the items that the user met.
    content = [[0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1], [1, 0]]
    found = untrained_metrics(data({"text": [[float(x) for x in row] for row in content]}), Settings())
    assert set(found) == {"popularity", NEIGHBOURS} and set(found["popularity"]) == {"validation", "test", NEW}
    assert found[NEIGHBOURS][NEW]["rank"] == 1.0
    # Items 1 (once in training) is above; 4, 5, 6 and 7 tie with the new one, as nobody trained on them.
    assert found["popularity"][NEW]["rank"] == 1 + 1 + 0.5 * 4
    assert set(untrained_metrics(data(), Settings())) == {"popularity"}


@given(st.sets(st.integers(1, 40), max_size=20), st.sets(st.integers(1, 40), max_size=15), st.integers(0, 2**32 - 1))
def test_withheld_items_are_never_negatives(met: set[int], withheld: set[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    negatives = Negatives(40, rng.permutation(np.array(sorted(withheld), np.int32)))
    excluded = negatives.excluded(rng.permutation(np.array(sorted(met), np.int32)))
    drawn = negatives.draw(rng, excluded, 500)
    assert not set(drawn.tolist()) & (met | withheld)
    plain = Negatives(40).draw(np.random.default_rng(seed), np.array(sorted(met), np.int32), 500)
    assert set(plain.tolist()) & withheld or not withheld - met
