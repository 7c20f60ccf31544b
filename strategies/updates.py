"""What a client changed: its reply minus the model that it was sent; and replies with other arrays in their place.

The replies are those that have passed the guards: their arrays are in the record "arrays", whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import DTypeLike, NDArray

from strategies.layers.layer import Round

Vector = dict[str, NDArray[Any]]  # of floating-point numbers


def vector_of(arrays: ArrayRecord, dtype: DTypeLike | None = None) -> Vector:
    """Return named arrays as NumPy's, each with its own dtype or with the one given."""
    return {name: np.asarray(array.numpy(), dtype) for name, array in arrays.items()}


def sent_models(sent: Round, dtype: DTypeLike | None = None) -> Callable[[Message], Vector]:
    """Return what tells, for a reply to a round, the model that its client was sent."""
    common = vector_of(sent.arrays, dtype)
    own = {node: vector_of(arrays, dtype) for node, arrays in sent.own.items()}
    return lambda reply: own.get(reply.metadata.src_node_id, common)


def update_of(reply: Message, sent: Mapping[str, NDArray[Any]]) -> Vector:
    """Return name -> the reply's array minus the one sent; of the type of ``sent`` where that is the wider one."""
    arrays = reply.content.array_records["arrays"]
    with np.errstate(over="ignore"):  # of two huge numbers: infinite, and then the norm is
        return {name: np.asarray(arrays[name].numpy() - array) for name, array in sent.items()}


def norm_of(update: Mapping[str, NDArray[Any]]) -> float:
    """Return the Euclidean norm over all arrays; infinite where it is too large to say."""
    with np.errstate(over="ignore"):
        return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in update.values()))


def with_arrays(
    reply: Message,
    sent: ArrayRecord,
    values: Mapping[str, NDArray[Any]],
    metrics: Mapping[str, float | list[float]] | None = None,
) -> Message:
    """Return ``reply`` with ``values`` in the order and types of ``sent``; the one given keeps its content.

    metrics: take the place of its own; None: its own.
    """
    arrays = ArrayRecord()  # filled one by one: made from a dict it would hold copies
    for name, like in sent.items():
        arrays[name] = Array(np.asarray(values[name], like.dtype))
    changed = copy.copy(reply)
    changed.content = RecordDict(dict(reply.content.items()) if metrics is None else {})
    changed.content["arrays"] = arrays
    if metrics is not None:
        changed.content["metrics"] = MetricRecord(dict(metrics))
    return changed
