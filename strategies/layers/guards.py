"""A bad reply costs itself and nothing else.

Flower's aggregation raises for the whole round when one reply has other keys than the rest, pairs arrays by their
order in the record, and checks neither finiteness nor weights. So each reply is checked first. What fails becomes an
error reply that names node and parameter; what passes is put into the server's order.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from strategies.arrays import ROWS, TableRows, Valued, record_of, values_of

REFUSED = 100  # error code of a refused reply; Flower's own codes are smaller
# Metrics of a reply that is a mean of several: clients in it, and bytes of their replies. Not part of its ``Shape``.
COUNTED = ("num-clients", "num-bytes")
Shape = tuple[str, tuple[tuple[str, int], ...]]  # key of the metric record, and (metric, length or -1) sorted
NUM_EXAMPLES = "num-examples"
MAX_EXAMPLES = 100_000  # the largest weight of a reply, unless the settings say otherwise


@dataclass(frozen=True)
class Refusal:
    """A reply that was not aggregated: the node that sent it, and one line that says why."""

    node_id: int
    reason: str


@dataclass(frozen=True)
class _Demands:
    """What the numbers of a reply must be: see ``check_train_replies``."""

    weight_key: str
    max_examples: int
    means: bool


class _Refused(Exception):
    """Why a reply is refused."""


def check_train_replies(
    replies: Iterable[Message],
    expected: Mapping[str, Array],
    weight_key: str,
    max_examples: int = MAX_EXAMPLES,
    means: bool = False,
) -> tuple[list[Message], list[Refusal]]:
    """Check the replies to a training round.

    expected: name -> the server's array; its shape and dtype are demanded.
    weight_key: the metric that weights the reply; ``num-examples`` must be a whole number.
    max_examples: the largest weight: one client that claims more would outweigh all others.
    means: whether a reply may be the mean of several clients', of whom ``num-clients`` tells; never from real clients.

    Returns the replies in their order, refused ones replaced by errors, accepted ones as new messages whose content
    holds their arrays under "arrays" in the order of ``expected``; and the refusals.
    """
    return _check(list(replies), expected, _Demands(weight_key, max_examples, means))


def check_metric_replies(
    replies: Iterable[Message], weight_key: str, max_examples: int = MAX_EXAMPLES
) -> tuple[list[Message], list[Refusal]]:
    """Check the replies to an evaluation, as :func:`check_train_replies` does, but for metrics alone."""
    return _check(list(replies), None, _Demands(weight_key, max_examples, means=False))


def check_train_reply(
    reply: Message, expected: Mapping[str, Array], weight_key: str, max_examples: int = MAX_EXAMPLES
) -> tuple[Message, Shape | None, str | None]:
    """Check one reply with content, a mean perhaps, as :func:`check_train_replies` does, but for what others hold.

    Returns the new message, which metrics it holds, and why it is refused: None if it is not.
    """
    return _check_one(reply, expected, _Demands(weight_key, max_examples, means=True))


def _check(
    replies: list[Message], expected: Mapping[str, Array] | None, demands: _Demands
) -> tuple[list[Message], list[Refusal]]:
    reasons: dict[int, str] = {}
    shapes: dict[int, Shape] = {}
    checked = list(replies)
    nodes: set[int] = set()
    for position, reply in enumerate(replies):
        if reply.has_error():
            continue
        if reply.metadata.src_node_id in nodes:
            reasons[position] = "the node has replied already"
            continue
        nodes.add(reply.metadata.src_node_id)
        checked[position], shape, reason = _check_one(reply, expected, demands)
        if shape is None:
            reasons[position] = str(reason)
        else:
            shapes[position] = shape
    reference = _most_common(shapes.values())
    for position, shape in shapes.items():
        if reference is not None and shape != reference:
            reasons[position] = difference(shape, reference)
    refusals = []
    for position, reason in sorted(reasons.items()):
        checked[position] = error_reply(replies[position], reason)
        node_id = replies[position].metadata.src_node_id
        refusals.append(Refusal(node_id, checked[position].error.reason or reason))
    return checked, refusals


def _check_one(
    reply: Message, expected: Mapping[str, Array] | None, demands: _Demands
) -> tuple[Message, Shape | None, str | None]:
    try:
        content = _checked_content(reply.content, expected)
        shape = _checked_metrics(reply.content, demands)
    except _Refused as refused:
        return reply, None, str(refused)
    # A shallow copy: the caller's message keeps its content, whatever the strategy does to this one.
    checked = copy.copy(reply)
    checked.content = content
    return checked, shape, None


def _checked_content(content: RecordDict, expected: Mapping[str, Array] | None) -> RecordDict:
    """Return a new record of the same content, the arrays checked and in the order of ``expected``."""
    if expected is None:
        return RecordDict({key: record.copy() for key, record in content.items()})
    if len(content.array_records) != 1:
        raise _Refused(f"it holds {len(content.array_records)} array records, one is needed")
    record = next(iter(content.array_records.values()))
    for name in record:
        if name.removesuffix(ROWS) not in expected:
            raise _Refused(f"parameter '{name}' is not aggregated in this round; clients may send the shared ones only")
    arrays: dict[str, Array] = {}
    for name, like in expected.items():
        if name not in record:
            raise _Refused(f"parameter '{name}' is missing")
        ids = record.get(name + ROWS)
        arrays[name] = (
            _checked_array(name, record[name], like) if ids is None else _checked_rows(name, ids, record[name], like)
        )
    others = {key: record.copy() for key, record in content.items() if not isinstance(record, ArrayRecord)}
    # A fixed key: Flower demands the same ones in all replies.
    return RecordDict({"arrays": record_of(arrays), **others})


def _checked_array(name: str, array: Array, like: Array) -> Valued:
    return Valued(_checked_values(name, array, like, tuple(like.shape)))


def _checked_rows(name: str, ids: Array, rows: Array, like: Array) -> TableRows:
    """Check the rows that came of a table, and which they are: ascending, distinct, within the table, none of row 0."""
    places = _values(name + ROWS, ids)
    if places.dtype != np.int64 or places.ndim != 1 or not like.shape:
        raise _Refused(f"parameter '{name}{ROWS}' must be a list of int64, is {places.dtype} {list(places.shape)}")
    if len(places) and not (places[0] >= 1 and places[-1] < like.shape[0] and (np.diff(places) > 0).all()):
        raise _Refused(f"parameter '{name}{ROWS}' must be ascending, distinct and within 1..{like.shape[0] - 1}")
    return TableRows(like, places, _checked_values(name, rows, like, (len(places), *like.shape[1:])))


def _checked_values(name: str, array: Array, like: Array, shape: tuple[int, ...]) -> np.ndarray:
    values = _values(name, array)
    if values.shape != shape:
        raise _Refused(f"parameter '{name}' has shape {list(values.shape)}, expected {list(shape)}")
    if values.dtype != np.dtype(like.dtype):
        raise _Refused(f"parameter '{name}' has dtype {values.dtype}, expected {like.dtype}")
    if not np.isfinite(values).all():
        raise _Refused(f"parameter '{name}' has a value that is not finite")
    return values


def _values(name: str, array: Array) -> np.ndarray:
    try:
        values = values_of(array)
    except Exception as error:  # the bytes come from outside: whatever decoding them raises, the reply is at fault
        raise _Refused(f"parameter '{name}' cannot be decoded ({type(error).__name__})") from error
    if not isinstance(values, np.ndarray):
        raise _Refused(f"parameter '{name}' cannot be decoded (not one array)")
    return values


def _checked_metrics(content: RecordDict, demands: _Demands) -> Shape:
    """Check the numbers of a reply and return which metrics it holds."""
    if len(content.metric_records) != 1:
        raise _Refused(f"it holds {len(content.metric_records)} metric records, one is needed")
    key, metrics = next(iter(content.metric_records.items()))
    for name, value in metrics.items():
        if not all(math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
            raise _Refused(f"metric '{name}' is not finite")
    for name in COUNTED:
        if name in metrics and not demands.means:
            raise _Refused(f"metric '{name}' is for means of several clients, which a client may not send")
        if not isinstance(metrics.get(name, 1), int) or metrics.get(name, 1) < 1:  # type: ignore[operator]
            raise _Refused(f"metric '{name}' must be a whole number above 0, is {metrics[name]}")
    _check_weight(metrics, demands)
    lengths = {name: len(v) if isinstance(v, list) else -1 for name, v in metrics.items() if name not in COUNTED}
    return key, tuple(sorted(lengths.items()))


def _check_weight(metrics: MetricRecord, demands: _Demands) -> None:
    key = demands.weight_key
    weight = metrics.get(key)
    if weight is None:
        raise _Refused(f"metric '{key}', its weight, is missing")
    if isinstance(weight, list) or weight <= 0:
        raise _Refused(f"metric '{key}', its weight, must be a number above 0, is {weight}")
    if key == NUM_EXAMPLES and weight != int(weight):
        raise _Refused(f"metric '{key}', its weight, must be a whole number, is {weight}")
    clients = metrics.get(COUNTED[0], 1)
    assert isinstance(clients, int)  # as checked
    limit = demands.max_examples * clients
    if weight > limit:
        raise _Refused(f"metric '{key}', its weight, is {weight}, above the limit of {limit}")


def _most_common(shapes: Iterable[Shape]) -> Shape | None:
    """What most replies hold; among equals the smallest, so that the order of the replies does not matter."""
    counts = Counter(shapes)
    return min(counts, key=lambda shape: (-counts[shape], shape)) if counts else None


def difference(shape: Shape, reference: Shape) -> str:
    """Say in which metric a reply differs from the others."""
    if shape[0] != reference[0]:
        return f"its metric record is named '{shape[0]}', in the other replies '{reference[0]}'"
    metrics, wanted = dict(shape[1]), dict(reference[1])
    for name in sorted(metrics.keys() ^ wanted.keys()):
        return f"metric '{name}' is {'missing' if name in wanted else 'not in the other replies'}"
    name = next(name for name in sorted(metrics) if metrics[name] != wanted[name])
    return f"metric '{name}' has another length than in the other replies"


def error_reply(reply: Message, reason: str) -> Message:
    """Return an error in place of ``reply``, from the same node."""
    # A reply turns source and destination round; the reply to a reply has the client as its source again.
    error = Error(REFUSED, f"reply of node {reply.metadata.src_node_id} refused: {reason}")
    return Message(error, reply_to=Message(RecordDict(), reply_to=reply))
