"""What differential privacy asks of a client before its reply leaves: a clipped update, noise, and no metrics.

The server asks for it in the message's config (see ``strategies.privacy.rule``): ``clipping_norm``, the largest L2
norm of the update over all shared parameters together; ``noise_deviation``, of each number; and ``metrics``. The first
name is Flower's, so that its wrappers with clipping on the client's side work too; Flower's own client mods cannot,
they want all parameters back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.sampling import generator
from fedmoe.wire import ROWS, NamedArrays

NORM_KEY = "clipping_norm"
NOISE_KEY = "noise_deviation"
BIT_KEY = "norm_bit"  # 1 if the update was clipped
METRICS_KEY = "metrics"
ASKED = frozenset([METRICS_KEY, NORM_KEY, NOISE_KEY])  # a config with none of them asks for no privacy
SUM_BITS = "sum-bits"  # in the config of a message: the client answers integers (see ``summed_reply``)
WEIGHT = "num-examples"


def private_reply(
    sent: NamedArrays,
    trained: NamedArrays,
    metrics: dict[str, Any],
    config: Mapping[str, Any],
    stream: Callable[[], np.random.Generator],
) -> tuple[NamedArrays, dict[str, Any]]:
    """Return the arrays and metrics of a reply as the server's config asks for them.

    sent: all parameters as they came. trained: the shared ones after training, or some rows of one.
    stream: returns what noise is drawn from.
    """
    if config.get(METRICS_KEY) == "none":
        metrics = {WEIGHT: 1}  # not even how many items there are; the clients weigh the same
    if (norm := config.get(NORM_KEY)) is not None:
        trained, clipped = _clipped(sent, trained, float(norm))
        metrics = metrics | {BIT_KEY: int(clipped)}
    if (deviation := config.get(NOISE_KEY)) is not None:
        trained = _noisy(sent, trained, float(deviation), stream())
    return trained, metrics


def noise_stream(simulated: bool, seed: int, server_round: int, client: int) -> np.random.Generator:
    """Return what a client draws its noise from.

    A simulated client draws from (seed, round, client), so that a run can be repeated. A real one asks the operating
    system: the seed came from the server.
    """
    if not simulated:
        return np.random.default_rng()
    return generator(seed, "privacy noise", server_round, client)


def _clipped(sent: NamedArrays, trained: NamedArrays, norm: float) -> tuple[NamedArrays, bool]:
    before = _before(sent, trained)
    updates = {name: trained[name].astype(np.float64) - values for name, values in before.items()}
    length = math.sqrt(sum(float(np.vdot(update, update)) for update in updates.values()))
    if length <= norm:
        return trained, False
    clipped = {name: before[name] + norm / length * update for name, update in updates.items()}
    return trained | {name: np.asarray(values, trained[name].dtype) for name, values in clipped.items()}, True


def _noisy(sent: NamedArrays, trained: NamedArrays, deviation: float, rng: np.random.Generator) -> NamedArrays:
    """Return all numbers with noise; where rows of a table were sent it is the whole table, or they would tell."""
    whole = {}
    for name, array in trained.items():
        if name.endswith(ROWS):
            continue
        values = array.astype(np.float64)
        if name + ROWS in trained:
            table = sent[name].astype(np.float64)
            table[trained[name + ROWS]] = values
            values = table
        whole[name] = np.asarray(values + rng.normal(0.0, deviation, values.shape), array.dtype)
    return whole


def _before(sent: NamedArrays, trained: NamedArrays) -> NamedArrays:
    """Return what each array of the reply was before the training; of a table, its rows that are in the reply."""
    return {name: sent[name][trained.get(name + ROWS, ...)] for name in trained if not name.endswith(ROWS)}
