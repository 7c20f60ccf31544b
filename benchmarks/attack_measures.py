"""What an attack did: exposure of the promoted item; and what updates tell about a history."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmoe_client.learning.evaluation import Histories, Scorer, rank_of_first

BATCH = 32


def exposure(
    scorer: Scorer, interactions: Histories, users: NDArray[np.int64], item: int, context_length: int, cutoff: int = 10
) -> float:
    """Return ER@K: the share of the users who have ``item`` among their first ``cutoff``, of those who never met it."""
    strangers = [int(user) for user in users if item not in interactions.history(int(user))]
    catalogue = np.arange(1, interactions.num_items + 1)
    shown = 0
    for start in range(0, len(strangers), BATCH):
        chunk = strangers[start : start + BATCH]
        contexts = np.zeros((len(chunk), context_length), np.int64)
        candidates = np.tile(np.concatenate([[item], catalogue]), (len(chunk), 1)).astype(np.int64)
        counted = np.ones_like(candidates, bool)
        counted[:, item] = False  # its own column among the catalogue; the candidate itself stands at column 0
        for row, user in enumerate(chunk):
            history = interactions.history(user)
            recent = history[-context_length:]
            contexts[row, context_length - len(recent) :] = recent
            counted[row, history] = False
        shown += int((rank_of_first(scorer(contexts, candidates), counted) <= cutoff).sum())
    return shown / len(strangers) if strangers else 0.0


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive one has a higher score than another; ties count half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    good, bad = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - good * (good + 1) / 2.0) / (good * bad))


def touched_score(changes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return in how many rounds each row changed at all, ``[V]``, of changes ``[rounds, V, D]``."""
    counts: NDArray[np.float64] = np.any(changes != 0.0, axis=2).sum(axis=0).astype(np.float64)
    return counts


def norm_score(changes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the norm of each row's total change, ``[V]``."""
    norms: NDArray[np.float64] = np.linalg.norm(changes.sum(axis=0), axis=1)
    return norms


def sign_score(changes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how far each row's total change points away from what most rows have in common, ``[V]``, -1 to 1.

    Softmax pulls a target's row towards the user's states and pushes all negatives' away from them, and there are more
    negatives: their common direction is the mean of all directions. Rows that did not change come last.
    """
    total = changes.sum(axis=0)
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    directions = np.divide(total, norms, out=np.zeros_like(total), where=norms > 0)
    common = directions.sum(axis=0)
    cosines = directions @ common / max(float(np.linalg.norm(common)), 1e-12)
    scores: NDArray[np.float64] = np.where(norms[:, 0] > 0, -cosines, -1.0).astype(np.float64)
    return scores


SCORES = {"touched": touched_score, "norm": norm_score, "sign": sign_score}
