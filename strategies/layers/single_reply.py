"""For wrappers that aggregate themselves: what replies change, and the outcome as the one reply that a strategy sees.

The wrapped strategy is then the server's step alone: FedAdam's from a mean that was made private or robust before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum, QFedAvg, Strategy
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from strategies.layers.wrapper import chain

ROWS = "/rows"  # behind a table's name: the numbers of the rows that a reply holds of it
Vector = dict[str, NDArray[np.float64]]


def vector_of(arrays: ArrayRecord) -> Vector:
    """Return named arrays as float64."""
    return {name: array.numpy().astype(np.float64) for name, array in arrays.items()}


def update_of(reply: Message, sent: Vector) -> Vector:
    """Return what a reply changes; a table that came as some of its rows changes in these alone."""
    record = next(iter(reply.content.array_records.values()))
    update = {}
    for name, values in sent.items():
        given = record[name].numpy().astype(np.float64)
        if name + ROWS in record:
            rows = record[name + ROWS].numpy()
            update[name] = np.zeros_like(values)
            update[name][rows] = given - values[rows]
        else:
            update[name] = given - values
    return update


def norm_of(arrays: Iterable[NDArray[np.floating[Any]]]) -> float:
    """Return the L2 norm of several arrays as one vector."""
    return math.sqrt(sum(float(np.vdot(values, values)) for values in arrays))


def metrics_of(reply: Message) -> MetricRecord:
    """Return the one metric record of a checked reply."""
    return next(iter(reply.content.metric_records.values()))


def single_reply(answer: Message, sent: ArrayRecord, values: Vector, metrics: Mapping[str, float]) -> Message:
    """Return a reply with ``values`` in the order and types of ``sent``, as if the sender of ``answer`` had sent it."""
    arrays = ArrayRecord()
    for name, like in sent.items():
        arrays[name] = Array(np.asarray(values[name], dtype=like.dtype))
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(metrics))})
    return Message(content, reply_to=Message(RecordDict(), reply_to=answer))


def refuse_comparing(strategy: Strategy, why: str) -> None:
    """Raise FedMoEError for a strategy that needs the clients' own replies: it would see a single one."""
    for part in chain(strategy):
        flowers = isinstance(part, Bulyan | FedMedian | FedTrimmedAvg | Krum | MultiKrum | QFedAvg)
        if flowers or getattr(part, "compares_replies", False):
            raise FedMoEError(
                f"{why}: {type(part).__name__} compares the clients' updates, but would see their mean alone; "
                "use fedavg, fedavgm, fedadam, fedyogi, fedadagrad or fedprox"
            )
