"""Robust against promotion and sabotage: bounded contributions, bounded rows, and if wanted trimmed ones.

With w the model sent, n_i the weight of client i (at most CAP times their median) and
u_i = n_i / mean(n) * (w_i - w), which with weights by targets, the default, and one step of SGD is the sum of the
gradients of all the client's targets:

    a row of a table with ||u_iv|| > row * median_j max_v ||u_jv||  counts as not changed by client i; then
    c_i = u_i * min(1, clip * median_j ||u_j|| / ||u_i||)
    dense parameters: w + mean of c_i
    row of a table:   w + (touched / clients) * (for each number: mean of c_i over the clients that changed the row,
                      without the k smallest and the k largest; k = ``trim`` of all clients, rounded up, but
                      no more than leaves their median)

Since u sums over targets, one target moves its item's row about as far whoever it belongs to, and a row that moves much
further than that is no training. It is dropped rather than scaled down: behind an adaptive optimiser on the server,
which divides by the size of what it gets, small and steady is as good as large. What is left to a few attackers is to
look like users who like the item. Trimming takes that from them too, at a price: of an item that few met it takes the
honest targets as well. At most k clients are taken to be bad, so however many changed a row, at most k of these are.

Trimmed mean: Yin, Chen, Ramchandran and Bartlett: Byzantine-robust distributed learning, ICML 2018, here over those who
touched a row, since over all clients nothing would be left of most items. Norms are bounded as by Sun, Kairouz, Suresh
and McMahan: Can you really backdoor federated learning? (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import ClassVar

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from strategies.layers.layer import Round, Stateless, weight_key
from strategies.layers.replies import metrics_of, weight_of
from strategies.needs import refuse_comparing
from strategies.rules.row_wise import ITEM_TABLE
from strategies.updates import Vector, norm_of, sent_models, update_of, vector_of, with_arrays

CAP = 4.0


class RobustRows(Stateless):
    """Hand to ``strategy`` the robust mean of the replies, as the reply of one client.

    clip: largest norm of a client's weighted update, in multiples of the round's median; 0: no bound. At 1, half of the
        clients are cut down to the length of the other half: long histories no longer outweigh the short ones.
    row: longest change of a row, in multiples of the median over clients of their longest; 0: no bound.
    trim: share of the round's clients that may be bad, in [0, 0.5). table: name of the parameter whose rows are items.

    Raises FedMoEError for values out of range, and for a strategy that compares the replies itself.
    """

    needs_every_reply = True
    compares_replies: ClassVar[bool] = True

    def __init__(
        self,
        strategy: Strategy,
        clip: float = 1.0,
        row: float = 2.0,
        trim: float = 0.0,
        table: str = ITEM_TABLE,
    ) -> None:
        super().__init__(strategy)
        if not 0.0 <= trim < 0.5 or clip < 0.0 or row < 0.0:
            raise FedMoEError(
                f"robust-rows: trim must be in [0, 0.5), clip and row at least 0; they are {trim}, {clip} and {row}"
            )
        refuse_comparing(strategy, "robust-rows")
        self.clip = clip
        self.row = row
        self.trim = trim
        self.table = table

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        """Return the robust mean as the one reply; the replies as they are, if all are errors."""
        answers = [reply for reply in replies if reply.has_content()]
        if not answers:
            return replies
        model, key = vector_of(sent.arrays, np.float64), weight_key(self.strategy)
        models = sent_models(sent, np.float64)
        weights = _weights(answers, key)
        updates = [update_of(reply, models(reply)) for reply in answers]
        _scale(updates, weights / weights.mean())
        if self.row and self.table in model:
            drop_long_rows([update[self.table] for update in updates], self.row)
        if self.clip:
            _scale(updates, _shrinking(np.array([norm_of(update) for update in updates]), self.clip))
        bad = ceil(self.trim * len(updates))
        mean: Vector = {}
        for name, values in model.items():
            stacked = np.stack([update[name] for update in updates])
            mean[name] = values + (trimmed_rows(stacked, bad) if name == self.table else stacked.mean(axis=0))
        metrics = _mean_metrics(answers, weights) | {key: float(sum(weights))}
        return [with_arrays(answers[0], sent.arrays, mean, metrics)]


def drop_long_rows(updates: Sequence[NDArray[np.float64]], multiple: float) -> None:
    """Set the rows of updates ``[V, D]``, one a client, to zero where they are too long, in place."""
    lengths = [np.linalg.norm(update, axis=1) for update in updates]
    longest = [length.max() for length in lengths if length.max() > 0]
    bound = multiple * float(np.median(longest)) if longest else 0.0
    for update, length in zip(updates, lengths, strict=True):
        update[length > bound] = 0.0


def trimmed_rows(updates: NDArray[np.float64], bad: int) -> NDArray[np.float64]:
    """Return the mean update ``[V, D]`` of updates ``[n, V, D]``, trimmed over those that change a row at all.

    bad: values cut off at each end, where there are enough.
    """
    if not bad:
        return np.asarray(updates.mean(axis=0))
    mean = np.zeros(updates.shape[1:])
    touched: NDArray[np.bool_] = np.any(updates != 0.0, axis=2)  # [n, V]
    for row in np.flatnonzero(touched.any(axis=0)):
        values = np.sort(updates[touched[:, row], row], axis=0)
        cut = min(bad, (len(values) - 1) // 2)
        mean[row] = len(values) / len(updates) * values[cut : len(values) - cut].mean(axis=0)
    return mean


def _shrinking(norms: NDArray[np.float64], multiple: float) -> NDArray[np.float64]:
    """Return by what each update is multiplied so that none is longer than a multiple of the median."""
    shrinking: NDArray[np.float64] = np.minimum(
        1.0, multiple * np.median(norms) / np.maximum(norms, np.finfo(float).tiny)
    )
    return shrinking


def _scale(updates: Sequence[Vector], factors: NDArray[np.float64]) -> None:
    for update, factor in zip(updates, factors, strict=True):
        for values in update.values():
            values *= factor


def _weights(answers: Sequence[Message], key: str) -> NDArray[np.float64]:
    given = np.array([weight_of(reply, key) for reply in answers])
    bounded: NDArray[np.float64] = np.minimum(given, CAP * np.median(given))
    return bounded


def _mean_metrics(answers: Sequence[Message], weights: NDArray[np.float64]) -> dict[str, float]:
    records = [metrics_of(reply) for reply in answers]
    names = [name for name, value in records[0].items() if isinstance(value, int | float)]
    return {name: float(np.average([record[name] for record in records], weights=weights)) for name in names}
