"""Adding up clients' integers, where the clients live or at the server, and the mean reply that follows."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from fedmoe.sums.quantise import WEIGHT
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import NAMES, ExactSum, Shapes, decoded, entries
from strategies.layers.replies import COUNTED, METRICS, Valued, record_of, refused, values_of

CLIENTS, BYTES = COUNTED


class ReplySum:
    """The exact sum of replies, each of one client or itself a sum; the order of ``add`` does not matter.

    shapes: name -> shape of the arrays that are added up; none in an evaluation.
    """

    def __init__(self, terms: Terms, shapes: Shapes) -> None:
        self.total = ExactSum(terms, shapes)
        self._first: Message | None = None
        self._errors: list[Message] = []

    def add(self, reply: Message, num_bytes: int | None = None) -> None:
        """Add a reply; one that does not fit is kept as an error that names the reason. num_bytes: not looked at."""
        if reply.has_error():
            self._errors.append(reply)
            return
        try:
            arrays, metrics, clients = _parts(reply.content, list(self.total.shapes))
            self.total.add(arrays, metrics, clients)
        except FedMoEError as error:
            self._errors.append(refused(reply, str(error)))
            return
        self._first = self._first or reply

    def replies(self) -> list[Message]:
        """Return the sum as one reply, if there is any, and the errors."""
        if self._first is None:
            return list(self._errors)
        arrays = record_of({name: Valued(values) for name, values in self.total.travelling().items()})
        content = {NAMES: self._first.content[NAMES], "arrays": arrays}
        return [self._with(content, {CLIENTS: self.total.clients}), *self._errors]

    def mean(self, server: Mapping[str, Array]) -> list[Message]:
        """Return the weighted mean as one reply, if there is any, and the errors.

        server: the arrays that the clients started from. The mean counts its clients and the bytes that they send:
        the entries of their two vectors, in the bits of the ring.
        """
        if self._first is None:
            return list(self._errors)
        total, union, metrics = self.total, self.total.union(), self.total.metrics or ()
        found = decoded(total.vector(union), total.shapes, union, metrics, total.terms)
        arrays = {name: Valued(_moved(server[name], update)) for name, update in found.updates.items()}
        sent = entries(total.shapes, union, len(metrics), total.terms) + sum(map(len, total.touched.values()))
        counts = {CLIENTS: total.clients, BYTES: total.clients * -(-sent * total.terms.ring_bits // 8)}
        content = {"arrays": record_of(arrays)} if arrays else {}
        return [self._with(content, {WEIGHT: found.weight, **found.metrics, **counts}), *self._errors]

    def _with(self, content: Mapping[str, Any], metrics: Mapping[str, int | float]) -> Message:
        assert self._first is not None
        reply = copy.copy(self._first)
        reply.content = RecordDict({**content, METRICS: MetricRecord(dict(metrics))})
        return reply


def _parts(content: RecordDict, names: Sequence[str]) -> tuple[dict[str, NDArray[np.integer]], list[str], int]:
    """Return the integers of a reply, the names of its metrics, and of how many clients it is the sum.

    names: of the arrays that are added up, in their order. Raises FedMoEError for a reply that is no sum.
    """
    arrays, about = content.array_records.get("arrays"), content.config_records.get(NAMES, ConfigRecord())
    try:
        metrics, added = (json.loads(str(about[key])) for key in ("metrics", "arrays"))
    except (KeyError, ValueError):
        metrics = added = None
    if arrays is None or not isinstance(metrics, list):
        raise FedMoEError("it is no sum of integers: use the same version and settings on the server and the clients")
    if added != list(names):
        raise FedMoEError(f"it is the sum of {added}, and {list(names)} are aggregated in this round")
    clients = content.metric_records.get(METRICS, MetricRecord()).get(CLIENTS)
    if not isinstance(clients, int) or clients < 1:
        raise FedMoEError(f"metric '{CLIENTS}' must be a whole number above 0, is {clients}")
    return {name: values_of(array) for name, array in arrays.items()}, [str(name) for name in metrics], clients


def _moved(server: Array, update: NDArray[np.float64]) -> NDArray[np.floating]:
    moved: NDArray[np.floating] = np.asarray(values_of(server) + update, server.dtype)
    return moved
