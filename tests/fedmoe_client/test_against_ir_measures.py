"""HR@K and NDCG@K agree with an independent implementation on random scores."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from ir_measures import Qrel, ScoredDoc, Success, nDCG

from data.sampling import Interactions
from fedmoe.settings import EvaluationSettings
from fedmoe_client.learning.evaluation import mean_metrics, ranks

USERS, ITEMS, LENGTH = 60, 80, 7


@pytest.mark.parametrize("split", ["validation", "test"])
def test_metrics_agree(split: str) -> None:
    rng = np.random.default_rng(3)
    histories = [rng.permutation(ITEMS)[:LENGTH].astype(np.int32) + 1 for _ in range(USERS)]
    ids = np.array([""] + [str(item) for item in range(1, ITEMS + 1)])
    interactions = Interactions(
        np.concatenate(histories), np.arange(USERS + 1) * LENGTH, np.arange(USERS).astype(str), ids
    )
    table = rng.normal(size=(USERS, ITEMS + 1)).astype(np.float32)
    users = iter(range(USERS))

    def scorer(contexts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return np.stack([table[next(users)][row] for row in candidates])

    found = mean_metrics(
        ranks(scorer, interactions, range(USERS), split, EvaluationSettings(), 1, 4),  # type: ignore[arg-type]
        [5, 20],
    )
    held_out = -2 if split == "validation" else -1
    qrels = [Qrel(str(user), str(history[held_out]), 1) for user, history in enumerate(histories)]
    run = [
        ScoredDoc(str(user), str(item), float(table[user, item]))
        for user, history in enumerate(histories)
        for item in range(1, ITEMS + 1)
        if item not in history[:held_out]
    ]
    measures = {f"hr@{k}": Success @ k for k in (5, 10, 20)} | {f"ndcg@{k}": nDCG @ k for k in (5, 10, 20)}
    expected = ir_measures.calc_aggregate(measures.values(), qrels, run)
    for name, measure in measures.items():
        assert found[name] == pytest.approx(expected[measure], abs=1e-6), name
