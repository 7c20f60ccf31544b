"""An item's embedding is averaged over the clients that trained it, not over all clients of the round.

A client's update of the item table is zero in the rows of items that it did not meet, neither in its history nor among
its negatives. The plain mean counts these zeros: an item that 1 client of 50 trained moves by a fiftieth of what that
client asked for. With u_i = x_i - x the update of client i, w_i its weight and T_r the clients with a change in row r,

    row r:                  x_r  +  sum_{i in T_r} w_i u_ir / sum_{i in T_r} w_i       (x_r where T_r is empty)
    all other parameters:   x    +  sum_i w_i u_i / sum_i w_i

This is the correction by an item's "heat" of Yucheng Ding, Chaoyue Niu, Fan Wu, Shaojie Tang, Chengfei Lv, Yanghe Feng,
Guihai Chen: Federated Submodel Optimization for Hot and Cold Data Features, NeurIPS 2022 (FedSubAvg), with the heat of
the round in the place of that of the whole population, which a server does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from strategies.layers.layer import Round, Stateless, weight_key
from strategies.layers.replies import weight_of
from strategies.updates import sent_models, update_of, with_arrays

ITEM_TABLE = "items.ids.weight"


class RowWise(Stateless):
    """Hand on the replies to ``strategy`` so that its weighted mean is the row-wise one.

    Each client's row is multiplied by sum_i w_i / sum_{i in T_r} w_i. ``strategy`` is to be one that builds on the
    weighted mean of the replies, such as FedAvg, FedAvgM or FedAdam.

    Under exact sums there is one reply, the mean. Then w_i is 1 in the row's formula: the numbers of clients are known
    (``touched``), not their weights.

    strategy: name of the strategy inside, or a mapping of ``name`` and its parameters.
    table: the parameter whose rows are items; while it is private nothing is changed.
    """

    needs_every_reply = True
    compares_replies: ClassVar[bool] = True
    touched: Mapping[str, NDArray[np.floating]] | None = None  # table -> share of the clients that touched each row

    def __init__(self, strategy: Strategy, table: str = ITEM_TABLE) -> None:
        super().__init__(strategy)
        self.table = table

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        """Return the replies, the rows of the item table made good for the clients that did not train them."""
        if self.table not in sent.arrays:
            return replies
        key, models = weight_key(self.strategy), sent_models(sent)
        weights = {i: weight_of(reply, key) for i, reply in enumerate(replies) if reply.has_content()}
        if self.touched is None:
            tables = {i: {self.table: models(replies[i])[self.table]} for i in weights}
            factors = row_factors({i: update_of(replies[i], tables[i])[self.table] for i in weights}, weights)
        else:
            shares = self.touched[self.table]
            factors = np.divide(1.0, shares, out=np.ones_like(shares), where=shares > 0)
        made_good = list(replies)
        for i in weights:
            model = models(replies[i])
            update = update_of(replies[i], model)
            update[self.table] = update[self.table] * factors[:, None]
            moved = {name: model[name] + array for name, array in update.items()}
            made_good[i] = with_arrays(replies[i], sent.arrays, moved)
        return made_good


def row_factors(updates: Mapping[int, NDArray[np.floating]], weights: Mapping[int, float]) -> NDArray[np.floating]:
    """Return ``[rows]``: all weight / the weight of the clients that changed the row; 1 where none did.

    updates: client -> its update of the table ``[rows, D]``; weights: client -> its weight.
    """
    if not updates:
        return np.ones(0)
    touched = np.zeros(len(next(iter(updates.values()))))
    for i, rows in updates.items():
        touched += weights[i] * rows.any(axis=1)
    return np.divide(sum(weights.values()), touched, out=np.ones_like(touched), where=touched > 0)
