"""Robust against promotion and sabotage: bounded contributions, and for each item the trimmed mean of who touched it.

With w the model sent, n_i the examples of client i (at most CAP times their median) and
u_i = n_i / mean(n) * (w_i - w):

    c_i = u_i * min(1, clip * median_j ||u_j|| / ||u_i||)
    dense parameters: w + mean of c_i
    row of a table:   w + (touched / clients) * (for each number: mean of c_i over the clients that changed the row,
                      without the ``trim`` share of smallest and of largest; their median where that leaves none)

Trimming over *all* clients (Yin, Chen, Ramchandran and Bartlett: Byzantine-robust distributed learning, ICML 2018)
would leave nothing of an item that few of them met. Over those who touched it, as a target or as a negative, a few
attackers that push an item up face the honest clients that had it as a negative. Norms are bounded as by Sun, Kairouz,
Suresh and McMahan: Can you really backdoor federated learning? (2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from errors import FedMoEError
from strategies.single_reply import (
    Vector,
    metrics_of,
    norm_of,
    refuse_comparing,
    single_reply,
    update_of,
    vector_of,
    weight_key,
)
from strategies.wrapper import Wrapper

CAP = 4.0


class TrimmedRows(Wrapper):
    """Hand to ``strategy`` the robust mean of the replies, as the reply of one client.

    trim: share cut off at each end of a row's values, in [0, 0.5). clip: largest norm of a client's weighted update, in
    multiples of the round's median; 0: no bound. table: name of the parameter whose rows are items.

    Raises FedMoEError for values out of range, and for a strategy that compares the replies itself.
    """

    needs_every_reply = True
    compares_replies: ClassVar[bool] = True

    def __init__(
        self, strategy: Strategy, trim: float = 0.3, clip: float = 2.0, table: str = "items.ids.weight"
    ) -> None:
        super().__init__(strategy)
        if not 0.0 <= trim < 0.5 or clip < 0.0:
            raise FedMoEError(f"trimmed-rows: trim must be in [0, 0.5) and clip at least 0, they are {trim} and {clip}")
        refuse_comparing(strategy, "trimmed-rows")
        self.trim = trim
        self.clip = clip
        self.table = table
        self._sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a training round."""
        self._sent = arrays
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate robustly, and let the strategy go on from there."""
        everything = list(replies)
        answers = [reply for reply in everything if reply.has_content()]
        if not answers:
            return self.strategy.aggregate_train(server_round, everything)
        sent, key = vector_of(self._sent), weight_key(self.strategy)
        weights = _weights(answers, key)
        updates = [update_of(reply, sent) for reply in answers]
        for update, factor in zip(updates, self._factors(updates, weights), strict=True):
            for values in update.values():
                values *= factor
        mean: Vector = {}
        for name, values in sent.items():
            stacked = np.stack([update[name] for update in updates])
            mean[name] = values + (trimmed_rows(stacked, self.trim) if name == self.table else stacked.mean(axis=0))
        metrics = _mean_metrics(answers, weights) | {key: float(sum(weights))}
        return self.strategy.aggregate_train(server_round, [single_reply(answers[0], self._sent, mean, metrics)])

    def _factors(self, updates: Sequence[Vector], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return by what each update is multiplied: its weight, and the bound on its norm."""
        factors: NDArray[np.float64] = weights / weights.mean()
        if not self.clip:
            return factors
        norms = factors * np.array([norm_of(update.values()) for update in updates])
        bound = self.clip * float(np.median(norms))
        factors *= np.minimum(1.0, bound / np.maximum(norms, np.finfo(float).tiny))
        return factors


def trimmed_rows(updates: NDArray[np.float64], trim: float) -> NDArray[np.float64]:
    """Return the mean update ``[V, D]`` of updates ``[n, V, D]``, trimmed over those that change a row at all."""
    mean = np.zeros(updates.shape[1:])
    touched: NDArray[np.bool_] = np.any(updates != 0.0, axis=2)  # [n, V]
    for row in np.flatnonzero(touched.any(axis=0)):
        values = np.sort(updates[touched[:, row], row], axis=0)
        cut = int(np.ceil(trim * len(values)))
        kept = values[cut : len(values) - cut]
        centre = kept.mean(axis=0) if len(kept) else np.median(values, axis=0)
        mean[row] = len(values) / len(updates) * centre
    return mean


def _weights(answers: Sequence[Message], key: str) -> NDArray[np.float64]:
    given = np.array([float(metrics_of(reply)[key]) for reply in answers])  # type: ignore[arg-type]
    bounded: NDArray[np.float64] = np.minimum(given, CAP * np.median(given))
    return bounded


def _mean_metrics(answers: Sequence[Message], weights: NDArray[np.float64]) -> dict[str, float]:
    records = [metrics_of(reply) for reply in answers]
    names = [name for name, value in records[0].items() if isinstance(value, int | float)]
    return {name: float(np.average([record[name] for record in records], weights=weights)) for name in names}
