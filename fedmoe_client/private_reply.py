"""What differential privacy asks of a client before its reply leaves: a clipped update, and no metrics.

The server asks for it in the message's config (see ``strategies.private_updates``): ``clipping_norm``, the largest L2
norm of the update over all shared parameters together, and ``metrics``. The names are Flower's, so that its wrappers
with clipping on the client's side work too; Flower's own client mods cannot, they want all parameters back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

NORM_KEY = "clipping_norm"
BIT_KEY = "norm_bit"  # 1 if the update was clipped
METRICS_KEY = "metrics"
ROWS = "/rows"  # behind a table's name: the numbers of the rows that the reply holds of it
WEIGHT = "num-examples"


def private_reply(
    sent: ArrayRecord, trained: ArrayRecord, metrics: dict[str, Any], config: Mapping[str, Any]
) -> tuple[ArrayRecord, dict[str, Any]]:
    """Return the arrays and metrics of a reply as the server's config asks for them.

    sent: all parameters as they came. trained: the shared ones after training, or some rows of one.
    """
    if config.get(METRICS_KEY) == "none":
        metrics = {WEIGHT: 1}  # not even how many items there are; the clients weigh the same
    if (norm := config.get(NORM_KEY)) is not None:
        trained, clipped = _clipped(sent, trained, float(norm))
        metrics = metrics | {BIT_KEY: int(clipped)}
    return trained, metrics


def _clipped(sent: ArrayRecord, trained: ArrayRecord, norm: float) -> tuple[ArrayRecord, bool]:
    before: dict[str, NDArray[Any]] = {}
    updates: dict[str, NDArray[np.float64]] = {}
    for name, array in trained.items():
        if name.endswith(ROWS):
            continue
        before[name] = sent[name].numpy()
        if name + ROWS in trained:
            before[name] = before[name][trained[name + ROWS].numpy()]
        updates[name] = array.numpy().astype(np.float64) - before[name]
    length = math.sqrt(sum(float(np.vdot(update, update)) for update in updates.values()))
    if length <= norm:
        return trained, False
    clipped = ArrayRecord()
    for name, array in trained.items():
        clipped[name] = array
        if name in updates:
            clipped[name] = Array(np.asarray(before[name] + norm / length * updates[name], dtype=array.dtype))
    return clipped, True
