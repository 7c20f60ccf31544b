"""FedAdam that leaves the rows of the item table alone which nobody has trained in a round.

FedAdam moves every row in every round: that of an item which no client met goes on along its old momentum, while its
moments fade. Over a large catalogue this is nearly all that a server does. Here such a row keeps its value and its
moments, so what a round costs follows from the items that its clients met, not from the catalogue. With r a row whose
mean update d_r is not zero, a_t FedAdam's rate of round t and b_1, b_2, tau its parameters,

    m_r = b_1 m_r + (1 - b_1) d_r
    v_r = b_2 v_r + (1 - b_2) d_r^2
    x_r = x_r + a_t m_r / (sqrt(v_r) + tau)

This is LazyAdam, known from TensorFlow and from ``torch.optim.SparseAdam``, at the server: Sashank Reddi et al.,
Adaptive Federated Optimization, ICLR 2021, is the dense form. All other parameters are stepped as FedAdam does.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import EllipsisType

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from strategies.layers.layer import Round
from strategies.layers.replies import TableRows, Valued, record_of, values_of
from strategies.layers.reply_mean import blocks, mean_of_checked
from strategies.rules.row_wise import ITEM_TABLE

Values = NDArray[np.floating]


class LazyAdam(FedAdam):
    """FedAdam, with FedAdam's parameters, over the rows of ``items.ids.weight`` that a round has changed.

    ``context`` is the round as it was sent, see ``Layer``.
    """

    needs_every_reply = False
    context: Round | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a training round; the model is kept as it is, where FedAdam copies it."""
        if self.context is None or self.context.arrays is not arrays:
            self.context = Round(server_round, arrays)
        return FedAvg.configure_train(self, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The stepped arrays and the mean of the metrics; None for both if no reply has content."""
        if self.context is None:
            raise FedMoEError("aggregate_train was called before configure_train: there are no arrays to step")
        sent = self.context.arrays
        mean = [reply for reply in replies if reply.has_content()]
        if len(mean) != 1:
            mean = mean_of_checked(mean, sent, self.weighted_by_key)
        if not mean:
            return None, None
        for moments in ("m_t", "v_t"):
            if not getattr(self, moments):
                setattr(self, moments, {name: np.zeros(each.shape, each.dtype) for name, each in sent.items()})
        means = mean[0].content.array_records["arrays"]
        # The bias correction of Kingma & Ba, Adam (2015), before section 2.1, with the round after this one, as FedAdam
        # has it.
        rate = (
            self.eta
            * np.sqrt(1 - np.power(self.beta_2, server_round + 1.0))
            / (1 - np.power(self.beta_1, server_round + 1.0))
        )
        stepped = {name: self._stepped(name, array, means[name], rate) for name, array in sent.items()}
        return record_of(stepped), self.train_metrics_aggr_fn([mean[0].content], self.weighted_by_key)

    def _stepped(self, name: str, sent: Array, mean: Array, rate: np.floating) -> Array:
        """Return a parameter after its step; of the item table the rows that have moved."""
        table = values_of(sent)
        if name != ITEM_TABLE:
            return Valued(self._step(name, ..., table, values_of(mean) - table, rate))
        ids, rows = (mean.ids, mean.rows) if isinstance(mean, TableRows) else (np.arange(len(table)), values_of(mean))
        found, stepped = [ids[:0]], [table[:0]]
        for part in blocks(len(ids)):
            values = table[ids[part]]
            update = rows[part] - values
            moved = update.any(axis=1)
            found.append(ids[part][moved])
            stepped.append(self._step(name, found[-1], values[moved], update[moved], rate).astype(table.dtype))
        return TableRows(sent, np.concatenate(found), np.concatenate(stepped))

    def _step(
        self, name: str, rows: NDArray[np.int64] | EllipsisType, values: Values, update: Values, rate: np.floating
    ) -> Values:
        """Return rows of a parameter after their step; their moments advance."""
        assert self.m_t is not None and self.v_t is not None
        moments, squares = self.m_t[name], self.v_t[name]
        moments[rows] = m = self.beta_1 * moments[rows] + (1 - self.beta_1) * update
        squares[rows] = v = self.beta_2 * squares[rows] + (1 - self.beta_2) * update**2
        stepped: Values = values + rate * m / (np.sqrt(v) + self.tau)
        return stepped
