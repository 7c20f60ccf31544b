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

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from strategies.layers.wrapper import Stateless
from strategies.updates import Update, moved_reply, update_of, weight_of

ITEM_TABLE = "items.ids.weight"


class RowWise(Stateless):
    """Hand on the replies to ``strategy`` so that its weighted mean is the row-wise one.

    Each client's row is multiplied by sum_i w_i / sum_{i in T_r} w_i. ``strategy`` is to be one that builds on the
    weighted mean of the replies, such as FedAvg, FedAvgM or FedAdam.

    strategy: name of the strategy inside, or a mapping of ``name`` and its parameters.
    table: the parameter whose rows are items; while it is private nothing is changed.
    """

    needs_every_reply = True
    compares_replies: ClassVar[bool] = True

    def __init__(self, strategy: Strategy, table: str = ITEM_TABLE) -> None:
        super().__init__(strategy)
        self.table = table
        self._model = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a training round."""
        self._model = arrays
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies, the rows of the item table made good for the clients that did not train them."""
        received = list(replies)
        if self.table in self._model:
            received = self._made_good(received)
        return self.strategy.aggregate_train(server_round, received)

    def _made_good(self, replies: list[Message]) -> list[Message]:
        table = {self.table: self._model[self.table].numpy()}
        weights = {i: weight_of(reply, self.strategy) for i, reply in enumerate(replies) if reply.has_content()}
        updates = {i: update_of(replies[i], table)[self.table] for i in weights}
        factors = row_factors(updates, weights)
        model = {name: array.numpy() for name, array in self._model.items()}
        made_good = list(replies)
        for i, rows in updates.items():
            update: Update = update_of(replies[i], model)
            made_good[i] = moved_reply(replies[i], model, update | {self.table: rows * factors[:, None]})
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
