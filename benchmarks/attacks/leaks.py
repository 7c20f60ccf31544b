"""What updates reveal of a history: AUC of "did this user meet this item", for the server and for everybody else.

The server sees a client's replies, in one round or in several; everybody else sees the mean of a cohort, from one model
that is sent to the next. Users are measured one by one, over all items of the catalogue; 0.5 is chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.clients import TABLE
from benchmarks.runs import sent_by
from data.sampling import Interactions, generator, training_part
from fedmoe.loading import to_run_config
from fedmoe.settings import Settings
from fedmoe.wire import ROWS, NamedArrays, pack
from fedmoe_client.learning.client import workbench
from fedmoe_client.learning.private_reply import METRICS_KEY, NOISE_KEY, NORM_KEY
from strategies import noise_of

Changes = NDArray[np.floating]
"""How replies change the item table, ``[rounds, V + 1, D]``; row 0 is padding."""
Scores = NDArray[np.float64]
Score = Callable[[Changes], Scores]


def leak(
    settings: Settings, interactions: Interactions, arrays: dict[str, NDArray[np.float32]], users: int, rounds: int
) -> dict[str, list[float]]:
    """Return what ``users`` clients leak that train on the model ``arrays`` in ``rounds`` rounds.

    By score: the AUC for the server after one round, after all of them, and for others from a cohort's mean.

    Where the settings ask for privacy, the clients do what they would in a run of these settings.
    """
    cohort = np.sort(generator(settings.seed, "leak").choice(interactions.num_users, users, replace=False))
    changes = [_changes(settings, interactions, arrays, int(user), rounds) for user in cohort]
    met = [np.isin(np.arange(1, interactions.num_items + 1), training_part(interactions.history(u))) for u in cohort]
    mean = np.mean([change[0] for change in changes], axis=0)
    if settings.privacy.on and settings.privacy.side == "server":
        deviation = noise_of(settings) * settings.privacy.update_norm / users
        mean = mean + generator(settings.seed, "leak noise").normal(0.0, deviation, mean.shape)
    seen = ([change[:1] for change in changes], changes, [mean[None]] * users)
    return {score.__name__: [_mean_auc(score, each, met) for each in seen] for score in (touched, norm, sign)}


def _mean_auc(score: Score, changes: Sequence[Changes], met: Sequence[NDArray[np.bool_]]) -> float:
    """Return the mean over users."""
    return float(np.mean([auc(score(change)[1:], known) for change, known in zip(changes, met, strict=True)]))


def _changes(settings: Settings, interactions: Interactions, sent: NamedArrays, user: int, rounds: int) -> Changes:
    bench, before = workbench(to_run_config(settings)), sent[TABLE]
    changes = np.zeros((rounds, *before.shape), np.float32)
    for number in range(1, rounds + 1):
        trained = sent_by(bench, user, pack(sent), number, **_asked(settings, interactions))
        rows = trained.get(TABLE + ROWS, ...)
        changes[number - 1][rows] = trained[TABLE] - before[rows]
    return changes


def _asked(settings: Settings, interactions: Interactions) -> dict[str, str | float]:
    """Return what a private run asks of its clients; clipping on the server's side looks the same to the others."""
    privacy = settings.privacy
    if not privacy.on:
        return {}
    asked: dict[str, str | float] = {METRICS_KEY: "none", NORM_KEY: privacy.update_norm}
    if privacy.side == "client":
        expected = settings.federation.client_fraction * interactions.num_users
        asked[NOISE_KEY] = noise_of(settings) * privacy.update_norm / float(np.sqrt(expected))
    return asked


def auc(scores: Scores, positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive one has a higher score than another; ties count half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    good, bad = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - good * (good + 1) / 2.0) / (good * bad))


def touched(changes: Changes) -> Scores:
    """Return in how many rounds each row changed at all."""
    return np.asarray(np.any(changes != 0.0, axis=2).sum(axis=0), np.float64)


def norm(changes: Changes) -> Scores:
    """Return the norm of each row's total change."""
    return np.asarray(np.linalg.norm(changes.sum(axis=0), axis=1))


def sign(changes: Changes) -> Scores:
    """Return how far each row's total change points away from what most rows have in common, -1 to 1.

    Softmax pulls a target's row towards the user's states and pushes all negatives' away from them, and there are more
    negatives: their common direction is the mean of all directions. Rows that did not change come last.
    """
    total = changes.sum(axis=0)
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    directions = np.divide(total, norms, out=np.zeros_like(total), where=norms > 0)
    common = directions.sum(axis=0)
    cosines = directions @ common / max(float(np.linalg.norm(common)), 1e-12)
    return np.where(norms[:, 0] > 0, -cosines, -1.0).astype(np.float64)
