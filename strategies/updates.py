"""What a client changed: its reply minus the model that it was sent; and replies with other updates in their place."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from strategies.layers.wrapper import weight_key

Update = dict[str, NDArray[np.floating]]


def update_of(reply: Message, model: Mapping[str, NDArray[np.floating]]) -> Update:
    """Return name -> the reply's array minus the model's, in their type. model: the round's shared arrays."""
    sent = reply.content.array_records["arrays"]
    with np.errstate(over="ignore"):  # of two huge numbers: infinite, and then the norm is
        return {name: sent[name].numpy() - array for name, array in model.items()}


def norm_of(update: Update) -> float:
    """Return the Euclidean norm over all arrays; infinite where it is too large to say."""
    with np.errstate(over="ignore"):
        squares = (float(np.square(array, dtype=np.float64).sum()) for array in update.values())
        return math.sqrt(sum(squares))


def moved_reply(reply: Message, model: Mapping[str, NDArray[np.floating]], update: Update) -> Message:
    """Return ``reply`` with the arrays model + update in place of its own; the one given keeps its content."""
    arrays = ArrayRecord()  # filled one by one: made from a dict it would hold copies
    for name, array in model.items():
        arrays[name] = Array(np.asarray(array + update[name], array.dtype))
    moved = copy.copy(reply)
    moved.content = RecordDict({**dict(reply.content.items()), "arrays": arrays})
    return moved


def weight_of(reply: Message, strategy: Strategy) -> float:
    """Return the weight of a reply that passed the guards, in the metric that ``strategy`` weighs by."""
    metrics = next(iter(reply.content.metric_records.values()))
    return float(cast(float, metrics[weight_key(strategy)]))
