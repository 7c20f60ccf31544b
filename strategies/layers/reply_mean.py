"""The weighted mean of a round's replies, for strategies that need no more: FedAvg and what builds on its mean.

``sum_i w_i x_i / sum_i w_i`` is summed reply by reply, in float64, so that memory does not grow with the number of
replies and a mean of means differs from the mean in the last digits alone. Of an item table of which a reply has some
rows, only these are added; for the others the reply counts as the server's own.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from flwr.app import Array, Message, MetricRecord, RecordDict

from strategies.layers.replies import (
    COUNTED,
    MAX_EXAMPLES,
    NUM_EXAMPLES,
    Guard,
    Shape,
    TableRows,
    Valued,
    difference,
    metrics_of,
    record_of,
    refused,
    values_of,
    weight_of,
)

CLIENTS, BYTES = COUNTED
ROWS_AT_ONCE = 2048
_Values = int | float | list[int] | list[float]


class ReplyMean:
    """Accumulates the replies to a training round. Where and when it is made does not matter, the order of ``add`` does
    in the last digits.

    expected: the round's shared arrays of the server, by name.
    weight_key: the metric that weights a reply.
    max_examples: the largest weight of one client.
    """

    def __init__(
        self, expected: Mapping[str, Array], weight_key: str = NUM_EXAMPLES, max_examples: int = MAX_EXAMPLES
    ) -> None:
        self.expected = dict(expected)
        self.weight_key = weight_key
        self._guard = Guard(self.expected, weight_key, max_examples, means=True)
        self._first: Message | None = None
        self._shape: Shape | None = None
        self._arrays = {name: _Sum(array) for name, array in self.expected.items()}
        self._metrics: dict[str, np.ndarray] = {}
        self._weight: int | float = 0
        self._counts = Counter[str]()
        self._errors: list[Message] = []

    def add(self, reply: Message, num_bytes: int | None = None) -> None:
        """Check a reply as ``Guard`` does and add it; a refused one is kept as an error that names the reason.

        A reply may be a mean of several, as of ``replies``. Its metrics must be those of the first one.

        num_bytes: how large a client's own reply was on its way; None: as it is.
        """
        if reply.has_error():
            self._errors.append(reply)
            return
        checked, found = self._guard.check(reply)
        if not isinstance(found, str) and self._shape not in (None, found):
            assert self._shape is not None
            found = difference(found, self._shape)
        if isinstance(found, str):
            self._errors.append(refused(reply, found))
            return
        self._shape = found
        self._counts.update(counts_of(reply, num_bytes))
        self.add_checked(checked)

    def add_checked(self, reply: Message) -> None:
        """Add a reply that has passed the guard, or an error; clients and bytes are not counted."""
        if reply.has_error():
            self._errors.append(reply)
            return
        metrics, weight = metrics_of(reply), weight_of(reply, self.weight_key)
        for name, array in reply.content.array_records["arrays"].items():
            self._arrays[name].add(weight, array)
        for name, value in metrics.items():
            if name not in COUNTED and name != self.weight_key:
                weighted = np.multiply(value, weight, dtype=np.float64)
                self._metrics[name] = np.add(self._metrics.get(name, 0.0), weighted)
        self._weight += metrics[self.weight_key]  # type: ignore[operator]  # a number, as checked; whole ones stay whole
        self._first = self._first or reply

    def replies(self) -> list[Message]:
        """Return the mean, if there is one, and the errors.

        The mean is a reply of the first client's node. Its metrics are the means, the sum of the weights, and the sums
        ``num-clients`` and ``num-bytes`` over the replies that came by ``add``.
        """
        if self._first is None:
            return list(self._errors)
        arrays = record_of({name: total.mean(float(self._weight)) for name, total in self._arrays.items()})
        first = metrics_of(self._first)
        key = next(name for name, record in self._first.content.metric_records.items() if record is first)
        means: dict[str, _Values] = {
            name: np.divide(total, self._weight).tolist() for name, total in self._metrics.items()
        }
        in_order = {name: means.get(name, self._weight) for name in first if name not in COUNTED}
        mean = copy.copy(self._first)
        mean.content = RecordDict({"arrays": arrays, key: MetricRecord(in_order | dict(self._counts))})
        return [mean, *self._errors]


def mean_of_checked(replies: Iterable[Message], expected: Mapping[str, Array], weight_key: str) -> list[Message]:
    """Return the mean of replies that have passed the guard, and the errors."""
    mean = ReplyMean(expected, weight_key)
    for reply in replies:
        mean.add_checked(reply)
    return mean.replies()


def counts_of(reply: Message, num_bytes: int | None = None) -> dict[str, int]:
    """Return ``num-clients`` and ``num-bytes`` of a reply with content: its own sums, or one client's.

    num_bytes: how large a client's own reply was on its way; None: as it is.
    """
    sent = metrics_of(reply).get(BYTES, num_bytes)
    if not isinstance(sent, int):
        sent = sum(record.count_bytes() for record in reply.content.values())
    return {CLIENTS: clients_of(reply), BYTES: sent}


def clients_of(reply: Message) -> int:
    """Return how many clients a reply with content stands for."""
    clients = metrics_of(reply).get(CLIENTS)
    return clients if isinstance(clients, int) else 1


def uncounted(reply: Message) -> Message:
    """Return a checked reply without the counts of a mean, which are none of its metrics."""
    for name in COUNTED if reply.has_content() else ():
        metrics_of(reply).pop(name, None)  # the guard's own record
    return reply


def blocks(rows: int) -> Iterator[slice]:
    """Cut rows of a table into blocks that stay in a core's cache while they are computed with."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, rows, ROWS_AT_ONCE))


class _Sum:
    """The weighted sum of one parameter over replies that have all of it, or some rows."""

    def __init__(self, server: Array) -> None:
        self._server = server
        self._total: np.ndarray | None = None  # over replies that had all
        self._whole = 0.0  # weight of those replies
        self._rows: _RowSums | None = None  # over replies that had some rows

    def add(self, weight: float, array: Array) -> None:
        if isinstance(array, TableRows):
            if self._rows is None:
                self._rows = _RowSums(self._server.shape)
            self._rows.add(weight, array)
            return
        if self._total is None:
            self._total = np.zeros(self._server.shape, np.float64)
        self._total += np.multiply(values_of(array), weight, dtype=np.float64)
        self._whole += weight

    def mean(self, weight: float) -> Valued:
        """Return the mean; weight: of all replies, those that had not every row count there as the server's."""
        kind = np.dtype(self._server.dtype)
        if self._rows is None:
            assert self._total is not None  # there is a reply, and it has every parameter
            return Valued(np.asarray(self._total / weight, dtype=kind))
        server, ids = values_of(self._server), self._rows.ids()
        column = -1, *[1] * (server.ndim - 1)
        if self._total is None:
            mean = np.empty((len(ids), *server.shape[1:]), kind)
            for part in blocks(len(ids)):
                weights, sums = self._rows.at(ids[part])
                mean[part] = (sums + (weight - weights).reshape(column) * server[ids[part]]) / weight
            return TableRows(self._server, ids, mean)
        missing = np.full(len(server), weight - self._whole)
        weights, sums = self._rows.at(ids)
        missing[ids] -= weights
        self._total[ids] += sums
        return Valued(np.asarray((self._total + missing.reshape(column) * server) / weight, dtype=kind))


class _RowSums:
    """Weighted sums of rows of a table, of those that came alone: what they cost does not depend on the table."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._places = np.full(shape[0], -1, np.int32)  # row -> its place among those that came
        self._weights = np.zeros(0)
        self._sums = np.zeros((0, *shape[1:]))
        self._size = 0  # rows that came; there is room for more

    def add(self, weight: float, array: TableRows) -> None:
        """Add the rows of a reply."""
        new = array.ids[self._places[array.ids] < 0]
        end = self._size + len(new)
        if end > (room := len(self._weights)):
            self._weights, self._sums = (
                np.concatenate([each, np.zeros((max(end, 2 * room) - room, *each.shape[1:]))])
                for each in (self._weights, self._sums)
            )
        self._places[new] = np.arange(self._size, end)
        self._size = end
        for part in blocks(len(array.ids)):
            places = self._places[array.ids[part]]
            self._weights[places] += weight
            self._sums[places] += np.multiply(array.rows[part], weight, dtype=np.float64)

    def ids(self) -> np.ndarray:
        """Return the ids of the rows that came, ascending."""
        return np.flatnonzero(self._places >= 0)

    def at(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight of the replies that had each of some rows that came, and the sums."""
        places = self._places[ids]
        return self._weights[places], self._sums[places]
