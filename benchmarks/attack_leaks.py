"""What updates tell about a history: AUC of "did this user meet this item", for the server and for everybody else.

The server sees a client's replies, in one round or in several; everybody else sees the mean of a cohort, from one model
that is sent to the next. Users are measured one by one, over all items of the catalogue; 0.5 is chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.attack_clients import TABLE
from benchmarks.attack_measures import SCORES, auc
from data.interactions import Interactions
from data.sampling import generator
from data.splits import training_part
from fedmoe.loading import to_run_config
from fedmoe.settings import GROUPS, Settings
from fedmoe.wire import NamedArrays, pack
from fedmoe_client.device.node import Node
from fedmoe_client.learning.messages import Task, perform
from fedmoe_client.learning.private_reply import METRICS_KEY, NOISE_KEY, NORM_KEY, ROWS, noise_stream, private_reply
from fedmoe_server.rounds.privacy import noise_of

Changes = NDArray[np.float32]  # [rounds, V + 1, D]


@dataclass(frozen=True)
class Leak:
    """AUC by score (see ``attack_measures``): for the server after one round and all, and from a cohort's mean."""

    server_once: dict[str, float]
    server_all: dict[str, float]
    public: dict[str, float]


def leak(
    settings: Settings, interactions: Interactions, arrays: dict[str, NDArray[np.float32]], users: int, rounds: int
) -> Leak:
    """Return what ``users`` clients leak that train on the model ``arrays`` in ``rounds`` rounds.

    Where the settings ask for privacy, the clients do what they would in a run of these settings.
    """
    cohort = np.sort(generator(settings.seed, "leak").choice(interactions.num_users, users, replace=False))
    changes = [_changes(settings, interactions, arrays, int(user), rounds) for user in cohort]
    met = [np.isin(np.arange(1, interactions.num_items + 1), training_part(interactions.history(u))) for u in cohort]
    mean = np.mean([change[0] for change in changes], axis=0)
    if settings.privacy.on and settings.privacy.side == "server":
        deviation = noise_of(settings) * settings.privacy.update_norm / users
        mean = mean + generator(settings.seed, "leak noise").normal(0.0, deviation, mean.shape)
    everyone = [mean[None]] * len(cohort)
    return Leak(_aucs([change[:1] for change in changes], met), _aucs(changes, met), _aucs(everyone, met))


def _aucs(changes: Sequence[NDArray[np.floating]], met: Sequence[NDArray[np.bool_]]) -> dict[str, float]:
    """Return the means over users, by score; row 0 is padding."""
    return {
        name: float(np.mean([auc(score(change)[1:], known) for change, known in zip(changes, met, strict=True)]))
        for name, score in SCORES.items()
    }


def _changes(settings: Settings, interactions: Interactions, sent: NamedArrays, user: int, rounds: int) -> Changes:
    """Return how a user's replies change the item table, ``[rounds, V + 1, D]``."""
    run_config, node, before = to_run_config(settings), Node(user), sent[TABLE]
    changes = np.zeros((rounds, *before.shape), np.float32)
    for number in range(1, rounds + 1):
        config = {"server-round": number, "shared": list(GROUPS), **_asked(settings, interactions)}
        trained, metrics = perform(Task("train", pack(sent), config, node, run_config, "leak"))
        assert trained is not None
        trained, _ = private_reply(
            sent,
            trained,
            metrics,
            config,
            lambda number=number: noise_stream(node, run_config, number),  # type: ignore[misc]
        )
        rows = trained.get(TABLE + ROWS, np.arange(len(before)))
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
