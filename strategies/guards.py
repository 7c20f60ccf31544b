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

REFUSED = 100  # error code of a refused reply; Flower's own codes are smaller
NUM_EXAMPLES = "num-examples"
MAX_EXAMPLES = 100_000  # the largest weight of a reply, unless the settings say otherwise
_Shape = tuple[str, tuple[tuple[str, int], ...]]  # key of the metric record, and (metric, length or -1) sorted


@dataclass(frozen=True)
class Refusal:
    """A reply that was not aggregated: the node that sent it, and one line that says why."""

    node_id: int
    reason: str


class _Refused(Exception):
    """Why a reply is refused."""


class _Decoded(Array):
    """An array that was decoded once, for its check: Flower's ``numpy`` would parse the bytes at every call."""

    def __init__(self, array: Array, values: np.ndarray) -> None:
        # Array's own constructor sorts out the many ways to call it, which would take longer than the decoding.
        self.__dict__.update(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data, _values=values)

    def numpy(self) -> np.ndarray:
        """Return the values, as an array of one's own to write into."""
        values: np.ndarray = self.__dict__["_values"].copy()
        return values


def check_train_replies(
    replies: Iterable[Message], expected: Mapping[str, Array], weight_key: str, max_examples: int = MAX_EXAMPLES
) -> tuple[list[Message], list[Refusal]]:
    """Check the replies to a training round.

    expected: name -> the server's array; its shape and dtype are demanded.
    weight_key: the metric that weights the reply; ``num-examples`` must be a whole number.
    max_examples: the largest weight: one client that claims more would outweigh all others.

    Returns the replies in their order, refused ones replaced by errors, accepted ones as new messages whose content
    holds their arrays under "arrays" in the order of ``expected``; and the refusals.
    """
    return _check(list(replies), expected, weight_key, max_examples)


def check_metric_replies(
    replies: Iterable[Message], weight_key: str, max_examples: int = MAX_EXAMPLES
) -> tuple[list[Message], list[Refusal]]:
    """Check the replies to an evaluation, as :func:`check_train_replies` does, but for metrics alone."""
    return _check(list(replies), None, weight_key, max_examples)


def _check(
    replies: list[Message], expected: Mapping[str, Array] | None, weight_key: str, max_examples: int
) -> tuple[list[Message], list[Refusal]]:
    reasons: dict[int, str] = {}
    contents: dict[int, RecordDict] = {}
    shapes: dict[int, _Shape] = {}
    nodes: set[int] = set()
    for position, reply in enumerate(replies):
        if reply.has_error():
            continue
        try:
            if reply.metadata.src_node_id in nodes:
                raise _Refused("the node has replied already")
            nodes.add(reply.metadata.src_node_id)
            contents[position] = _checked_content(reply.content, expected)
            shapes[position] = _checked_metrics(reply.content, weight_key, max_examples)
        except _Refused as refused:
            reasons[position] = str(refused)
            shapes.pop(position, None)
    reference = _most_common(shapes.values())
    for position, shape in shapes.items():
        if reference is not None and shape != reference:
            reasons[position] = _difference(shape, reference)
    checked = list(replies)
    refusals = []
    for position, reply in enumerate(replies):
        if position in reasons:
            node_id = reply.metadata.src_node_id
            refusals.append(Refusal(node_id, f"reply of node {node_id} refused: {reasons[position]}"))
            checked[position] = _error_reply(reply, refusals[-1].reason)
        elif position in contents:
            # A shallow copy: the caller's message keeps its content, whatever the strategy does to this one.
            checked[position] = copy.copy(reply)
            checked[position].content = contents[position]
    return checked, refusals


def _checked_content(content: RecordDict, expected: Mapping[str, Array] | None) -> RecordDict:
    """Return a new record of the same content, the arrays checked and in the order of ``expected``."""
    rebuilt = RecordDict({key: record.copy() for key, record in content.items()})
    if expected is None:
        return rebuilt
    if len(content.array_records) != 1:
        raise _Refused(f"it holds {len(content.array_records)} array records, one is needed")
    record = next(iter(content.array_records.values()))
    for name in record:
        if name not in expected:
            raise _Refused(f"parameter '{name}' is not aggregated in this round; clients may send the shared ones only")
    arrays = ArrayRecord()  # filled one by one: made from a dict it would hold copies
    for name, like in expected.items():
        if name not in record:
            raise _Refused(f"parameter '{name}' is missing")
        arrays[name] = _checked_array(name, record[name], like)
    # Fixed keys: Flower demands the same record keys in all replies.
    del rebuilt[next(iter(content.array_records))]
    rebuilt["arrays"] = arrays
    return rebuilt


def _checked_array(name: str, array: Array, like: Array) -> Array:
    try:
        values = _decoded(array, like)
    except Exception as error:  # the bytes come from outside: whatever decoding them raises, the reply is at fault
        raise _Refused(f"parameter '{name}' cannot be decoded ({type(error).__name__})") from error
    if not isinstance(values, np.ndarray):
        raise _Refused(f"parameter '{name}' cannot be decoded (not one array)")
    shape = tuple(like.shape)
    if values.shape != shape:
        raise _Refused(f"parameter '{name}' has shape {list(values.shape)}, expected {list(shape)}")
    if values.dtype != np.dtype(like.dtype):
        raise _Refused(f"parameter '{name}' has dtype {values.dtype}, expected {like.dtype}")
    if not np.isfinite(values).all():
        raise _Refused(f"parameter '{name}' has a value that is not finite")
    return _Decoded(array, values)


def _decoded(array: Array, like: Array) -> np.ndarray:
    """Return the values of ``array``; quickly, where its header is byte for byte that of ``like``."""
    header = len(like.data) - np.dtype(like.dtype).itemsize * math.prod(like.shape)
    same = array.stype == like.stype and len(array.data) == len(like.data)
    if same and array.data[:header] == like.data[:header]:
        # Parsing the header takes most of the time of a small array; the order of the values is of no matter here.
        return np.frombuffer(array.data, like.dtype, offset=header).reshape(like.shape)
    return array.numpy()


def _checked_metrics(content: RecordDict, weight_key: str, max_examples: int) -> _Shape:
    """Check the numbers of a reply and return which metrics it holds."""
    if len(content.metric_records) != 1:
        raise _Refused(f"it holds {len(content.metric_records)} metric records, one is needed")
    key, metrics = next(iter(content.metric_records.items()))
    for name, value in metrics.items():
        if not all(math.isfinite(number) for number in (value if isinstance(value, list) else [value])):
            raise _Refused(f"metric '{name}' is not finite")
    _check_weight(metrics, weight_key, max_examples)
    return key, tuple(sorted((name, len(v) if isinstance(v, list) else -1) for name, v in metrics.items()))


def _check_weight(metrics: MetricRecord, weight_key: str, max_examples: int) -> None:
    weight = metrics.get(weight_key)
    if weight is None:
        raise _Refused(f"metric '{weight_key}', its weight, is missing")
    if isinstance(weight, list) or weight <= 0:
        raise _Refused(f"metric '{weight_key}', its weight, must be a number above 0, is {weight}")
    if weight_key == NUM_EXAMPLES and weight != int(weight):
        raise _Refused(f"metric '{weight_key}', its weight, must be a whole number, is {weight}")
    if weight > max_examples:
        raise _Refused(f"metric '{weight_key}', its weight, is {weight}, above the limit of {max_examples}")


def _most_common(shapes: Iterable[_Shape]) -> _Shape | None:
    """What most replies hold; among equals the smallest, so that the order of the replies does not matter."""
    counts = Counter(shapes)
    return min(counts, key=lambda shape: (-counts[shape], shape)) if counts else None


def _difference(shape: _Shape, reference: _Shape) -> str:
    if shape[0] != reference[0]:
        return f"its metric record is named '{shape[0]}', in the other replies '{reference[0]}'"
    metrics, wanted = dict(shape[1]), dict(reference[1])
    for name in sorted(metrics.keys() ^ wanted.keys()):
        return f"metric '{name}' is {'missing' if name in wanted else 'not in the other replies'}"
    name = next(name for name in sorted(metrics) if metrics[name] != wanted[name])
    return f"metric '{name}' has another length than in the other replies"


def _error_reply(reply: Message, reason: str) -> Message:
    """Return an error in place of ``reply``, from the same node."""
    # A reply turns source and destination round; the reply to a reply has the client as its source again.
    return Message(Error(REFUSED, reason), reply_to=Message(RecordDict(), reply_to=reply))
