"""Replies: their arrays as values, and the guard that each one has to pass.

Flower's ``Array`` holds bytes and parses them at every call of ``numpy``; those here hold values, and make bytes when
somebody asks.

A bad reply costs itself and nothing else. Flower's aggregation raises for the whole round when one reply has other keys
than the rest, pairs arrays by their order in the record, and checks neither finiteness nor weights. So each reply is
checked first. What fails becomes an error of the kind REFUSED that names the parameter or metric; what passes is put
into the server's order.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedmoe.errors import FailureKind
from fedmoe.wire import ROWS

# Metrics of a reply that is a mean of several: clients in it, and bytes of their replies. Not part of its ``Shape``.
COUNTED = ("num-clients", "num-bytes")
Shape = tuple[str, tuple[tuple[str, int], ...]]  # key of the metric record, and (metric, length or -1) sorted
NUM_EXAMPLES = "num-examples"
METRICS = "metrics"  # the record of a reply's metrics, where it holds several metric records
MAX_EXAMPLES = 100_000  # the largest weight of a reply, unless the settings say otherwise


class Valued(Array):
    """An array that holds its values, to be read only; ``numpy`` copies them."""

    values: np.ndarray

    def __init__(self, values: np.ndarray) -> None:
        # Array's own constructor sorts out the many ways to call it, which takes longer than all else here.
        self.__dict__.update(dtype=_name_of(values.dtype), shape=values.shape, stype="numpy.ndarray", values=values)

    def numpy(self) -> np.ndarray:
        """Return the values, as an array of one's own to write into."""
        return self.values.copy()

    @property
    def data(self) -> bytes:  # type: ignore[override]  # who writes to an array's bytes makes an array
        """The values as Flower's bytes."""
        encoded: bytes = Array(self.numpy()).data
        return encoded

    def deflate(self) -> bytes:
        """Return what Flower sends ahead of the bytes; it does not know of this class, and gets a plain array's."""
        deflated: bytes = Array(self.numpy()).deflate()
        return deflated


class TableRows(Valued):
    """The rows ``rows [R, ...]`` at ``ids`` int64 ``[R]`` (ascending, distinct) of a table, the others ``server``'s."""

    ids: np.ndarray
    rows: np.ndarray
    server: Array

    def __init__(self, server: Array, ids: np.ndarray, rows: np.ndarray) -> None:
        self.__dict__.update(dtype=server.dtype, shape=server.shape, stype="numpy.ndarray")
        self.__dict__.update(ids=ids, rows=rows, server=server)

    def numpy(self) -> np.ndarray:
        """Return the whole table, made anew at each call: who keeps it keeps the memory of a table."""
        table = self.server.numpy()
        table[self.ids] = self.rows
        return table


@lru_cache(maxsize=32)
def _name_of(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name, which NumPy puts together anew each time: half of the time of making an array."""
    return str(dtype)


def values_of(array: Array) -> np.ndarray:
    """Return the values of an array, to be read only."""
    return array.values if type(array) is Valued else array.numpy()


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Return a record of these very arrays: made from a dict by Flower's constructor it would hold plain copies."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


@dataclass(frozen=True)
class Refusal:
    """A reply that was not aggregated: the node that sent it, and one line that says why."""

    node_id: int
    reason: str


@dataclass(frozen=True)
class Clipping:
    """A reply that was cut down: the node that sent it, the norm of its update, and the norm that it was given."""

    node_id: int
    norm: float
    bound: float


class _Refused(Exception):
    """Why a reply is refused."""


@dataclass(frozen=True)
class Guard:
    """What a reply must be.

    Attributes:
        expected: name -> the server's array, whose shape and dtype are demanded; None: only metrics are looked at.
        weight_key: the metric that weights the reply; ``num-examples`` must be a whole number.
        max_examples: the largest weight: one client that claims more would outweigh all others.
        means: whether a reply may be the mean of several clients', of whom ``num-clients`` tells; never from real
            clients.
        sent: node id -> what it was sent in place of ``expected``: rows that it did not return are as it got them.
        means_only: whether a reply may hold arrays and metrics alone.
    """

    expected: Mapping[str, Array] | None = None
    weight_key: str = NUM_EXAMPLES
    max_examples: int = MAX_EXAMPLES
    means: bool = False
    sent: Mapping[int, Mapping[str, Array]] = field(default_factory=dict)
    means_only: bool = False

    def checked(self, replies: Iterable[Message]) -> tuple[list[Message], list[Refusal]]:
        """Return the replies in their order, and what was refused.

        Refused ones are replaced by errors, accepted ones by new messages with their arrays under "arrays" in the order
        of ``expected``. Accepted replies hold the metrics that most of them hold, and a node counts once.
        """
        checked = list(replies)
        shapes: dict[int, Shape] = {}
        reasons: dict[int, str] = {}
        nodes: set[int] = set()
        for position, reply in enumerate(checked):
            if reply.has_error():
                continue
            if reply.metadata.src_node_id in nodes:
                reasons[position] = "the node has replied already"
                continue
            nodes.add(reply.metadata.src_node_id)
            checked[position], found = self.check(reply)
            if isinstance(found, str):
                reasons[position] = found
            else:
                shapes[position] = found
        counts = Counter(shapes.values())  # among equals the smallest: the order of the replies does not matter
        reference = min(counts, key=lambda shape: (-counts[shape], shape), default=("", ()))
        reasons |= {place: difference(shape, reference) for place, shape in shapes.items() if shape != reference}
        refusals = [Refusal(checked[place].metadata.src_node_id, reason) for place, reason in sorted(reasons.items())]
        for place, reason in reasons.items():
            checked[place] = refused(checked[place], reason)
        return checked, refusals

    def check(self, reply: Message) -> tuple[Message, Shape | str]:
        """Return the new message for a reply with content and which metrics it holds; or why it is refused."""
        try:
            content = self._content(reply.content, self.sent.get(reply.metadata.src_node_id, self.expected))
            shape = self._metrics(reply.content)
        except _Refused as refusal:
            return reply, str(refusal)
        # A shallow copy: the caller's message keeps its content, whatever the strategy does to this one.
        checked = copy.copy(reply)
        checked.content = content
        return checked, shape

    def _content(self, content: RecordDict, expected: Mapping[str, Array] | None) -> RecordDict:
        """Return a new record of the same content, the arrays checked and in the order of ``expected``."""
        if expected is None:
            return RecordDict({key: record.copy() for key, record in content.items()})
        records = content.array_records
        if len(records) != 1 and "arrays" not in records:
            raise _Refused(f"it holds {len(records)} array records, one is needed, or one named 'arrays' among others")
        main = "arrays" if "arrays" in records else next(iter(records))
        record = records[main]
        for name in record:
            if name.removesuffix(ROWS) not in expected:
                raise _Refused(
                    f"parameter '{name}' is not aggregated in this round; clients may send the shared ones only"
                )
        arrays = {name: _array(name, record, like) for name, like in expected.items()}
        others = {key: record.copy() for key, record in content.items() if key != main}
        if self.means_only and len(others) > 1:
            raise _Refused(f"it holds the records {', '.join(others)} beside its arrays, one of metrics is allowed")
        # A fixed key: Flower demands the same ones in all replies.
        return RecordDict({"arrays": record_of(arrays), **others})

    def _metrics(self, content: RecordDict) -> Shape:
        """Check the numbers of a reply and return which metrics it holds."""
        found = content.metric_records
        if len(found) != 1 and METRICS not in found:
            raise _Refused(f"it holds {len(found)} metric records, one is needed, or one named 'metrics' among others")
        key = METRICS if METRICS in found else next(iter(found))
        metrics = found[key]
        for name, value in metrics.items():
            if not all(math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
                raise _Refused(f"metric '{name}' is not finite")
        for name in COUNTED:
            if name in metrics and not self.means:
                raise _Refused(f"metric '{name}' is for means of several clients, which a client may not send")
            if not isinstance(metrics.get(name, 1), int) or metrics.get(name, 1) < 1:  # type: ignore[operator]
                raise _Refused(f"metric '{name}' must be a whole number above 0, is {metrics[name]}")
        self._weight(metrics)
        lengths = {name: len(v) if isinstance(v, list) else -1 for name, v in metrics.items() if name not in COUNTED}
        return key, tuple(sorted(lengths.items()))

    def _weight(self, metrics: MetricRecord) -> None:
        weight, what = metrics.get(self.weight_key), f"metric '{self.weight_key}', its weight,"
        if weight is None:
            raise _Refused(f"{what} is missing")
        if isinstance(weight, list) or weight <= 0:
            raise _Refused(f"{what} must be a number above 0, is {weight}")
        if self.weight_key == NUM_EXAMPLES and weight != int(weight):
            raise _Refused(f"{what} must be a whole number, is {weight}")
        clients = metrics.get(COUNTED[0], 1)
        assert isinstance(clients, int)  # as checked
        limit = self.max_examples * clients
        if weight > limit:
            raise _Refused(f"{what} is {weight}, above the limit of {limit}")


def _array(name: str, record: ArrayRecord, like: Array) -> Array:
    """Return a parameter of a reply: whole, or the rows that came of a table."""
    if name not in record:
        raise _Refused(f"parameter '{name}' is missing")
    if name + ROWS not in record:
        return Valued(_values(name, record[name], like, tuple(like.shape)))
    ids = _decoded(name + ROWS, record[name + ROWS])
    if ids.dtype != np.int64 or ids.ndim != 1 or not like.shape:
        raise _Refused(f"parameter '{name}{ROWS}' must be a list of int64, is {ids.dtype} {list(ids.shape)}")
    if len(ids) and not (ids[0] >= 1 and ids[-1] < like.shape[0] and (np.diff(ids) > 0).all()):
        raise _Refused(f"parameter '{name}{ROWS}' must be ascending, distinct and within 1..{like.shape[0] - 1}")
    return TableRows(like, ids, _values(name, record[name], like, (len(ids), *like.shape[1:])))


def _values(name: str, array: Array, like: Array, shape: tuple[int, ...]) -> np.ndarray:
    values = _decoded(name, array)
    if values.shape != shape:
        raise _Refused(f"parameter '{name}' has shape {list(values.shape)}, expected {list(shape)}")
    if values.dtype != np.dtype(like.dtype):
        raise _Refused(f"parameter '{name}' has dtype {values.dtype}, expected {like.dtype}")
    if not np.isfinite(values).all():
        raise _Refused(f"parameter '{name}' has a value that is not finite")
    return values


def _decoded(name: str, array: Array) -> np.ndarray:
    try:
        values = values_of(array)
    except Exception as error:  # the bytes come from outside: whatever decoding them raises, the reply is at fault
        raise _Refused(f"parameter '{name}' cannot be decoded ({type(error).__name__})") from error
    if not isinstance(values, np.ndarray):
        raise _Refused(f"parameter '{name}' cannot be decoded (not one array)")
    return values


def metrics_of(reply: Message) -> MetricRecord:
    """Return the metric record of a checked reply; that of the name "metrics" where there are others."""
    found = reply.content.metric_records
    return found[METRICS] if METRICS in found else next(iter(found.values()))


def weight_of(reply: Message, key: str) -> float:
    """Return the weight of a checked reply: its metric ``key``."""
    return float(cast(float, metrics_of(reply)[key]))


def difference(shape: Shape, reference: Shape) -> str:
    """Say in which metric a reply differs from the others."""
    if shape[0] != reference[0]:
        return f"its metric record is named '{shape[0]}', in the other replies '{reference[0]}'"
    metrics, wanted = dict(shape[1]), dict(reference[1])
    for name in sorted(metrics.keys() ^ wanted.keys()):
        return f"metric '{name}' is {'missing' if name in wanted else 'not in the other replies'}"
    name = next(name for name in sorted(metrics) if metrics[name] != wanted[name])
    return f"metric '{name}' has another length than in the other replies"


def refused(reply: Message, reason: str) -> Message:
    """Return an error in place of ``reply``, from the same node."""
    # A reply turns source and destination round; the reply to a reply has the client as its source again.
    return Message(Error(FailureKind.REFUSED, reason), reply_to=Message(RecordDict(), reply_to=reply))
