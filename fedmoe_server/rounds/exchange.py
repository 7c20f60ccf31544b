"""One exchange of messages with the clients: what came back, who failed and why, and how many bytes travelled.

The model's arrays are packed before they are sent and unpacked when they arrive; all other modules of the server see
them by their names. What a strategy puts into records of other names travels as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Protocol, runtime_checkable

from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import FailureKind, FedMoEError, one_line
from fedmoe.wire import ROWS, NamedArrays, is_packed, packed_bytes, size_of, to_record, unpack
from fedmoe_server.rounds.record import SELECTION_METRIC, Exchange, Failure, Metrics, list_failures
from strategies import counts_of
from strategies.layers.replies import TableRows, Valued, record_of, refused, values_of
from strategies.layers.reply_mean import clients_of

ClientIds = Callable[[], Mapping[int, int]]
Mean = Callable[[Sequence[Message]], list[Message]]
Reason = tuple[FailureKind, str]
ARRAYS = "arrays"  # the record of a message that holds the model
SENDING = 10.0  # seconds that a message may need on its way; the deadline counts from when all are sent


@runtime_checkable
class ReducingGrid(Protocol):
    """A grid that can merge replies where the clients live; arrays need not be packed for it."""

    def to_record(self, arrays: NamedArrays) -> ArrayRecord:
        """Return arrays as ``fedmoe.wire.to_record`` does."""

    def send_and_reduce(self, messages: Iterable[Message], reducer: Callable[[], PackedMean]) -> list[Message]:
        """Return what each reducer made of the replies it got; every reply is in a merged one, or an error."""


class KnownClients:
    """The directory of a simulation whose grid knows its clients: none is asked, and none is waited for."""

    def client_ids(self, grid: Grid) -> Mapping[int, int]:
        """Return node id -> client id as the grid tells it."""
        known: Mapping[int, int] = grid.client_ids()  # type: ignore[attr-defined]  # the app has looked
        return known

    names = client_ids

    def await_clients(self, grid: Grid) -> None:
        """Return at once."""


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    stage: str,
    client_ids: ClientIds,
    timeout: float | None,
    mean: Mean | None = None,
) -> Exchange:
    """Send messages, wait for the replies and account for every client that was asked.

    Args:
        stage: what the clients are asked for, see ``Failure``.
        client_ids: returns node id -> client id; called only when a failure has to be named.
        timeout: seconds to wait; None: until every client has answered or failed.
        mean: makes of all replies one, and errors; None: they stay as they are.
    """
    requests = packed(messages, grid.to_record if isinstance(grid, ReducingGrid) else to_record)
    if timeout is not None:
        for message in requests:  # a node that comes back later must not begin with it any more
            message.metadata.ttl = timeout + SENDING
    arrived = list(grid.send_and_receive(requests, timeout=timeout)) if requests else []
    answers = _answers(requests, arrived)
    replies = (mean or list)([unpacked(reply) for reply in answers.values()])
    reasons: dict[int, Reason] = {
        message.metadata.dst_node_id: (FailureKind.NO_REPLY, "no reply in time")
        for message in requests
        if message.metadata.dst_node_id not in answers
    }
    asked = {id(reply): node for node, reply in answers.items()}  # the server itself answers for a node that is gone
    errors = [reply for reply in replies if reply.has_error()]
    reasons |= {asked.get(id(each), each.metadata.src_node_id): _reason(each.error) for each in errors}
    return Exchange(
        sent=len(requests),
        replies=replies,
        failures=name_failures(reasons, stage, client_ids),
        bytes_down=payload(requests),
        bytes_up=_sent(replies) if mean else payload(reply for reply in answers.values() if reply.has_content()),
        dropped=_dropped(arrived, answers),
    )


def reduced_exchange(
    grid: ReducingGrid,
    messages: Iterable[Message],
    stage: str,
    client_ids: ClientIds,
    reducer: Callable[[], Reducer],
    mean: Mean | None = None,
) -> Exchange:
    """Do what ``exchange`` does, without a time limit, with replies that are merged where the clients live.

    The merged replies count their clients and the bytes that these would have sent; a refused reply is an error, and
    its bytes are not counted.
    """
    requests = packed(messages, grid.to_record)
    arrived = grid.send_and_reduce(requests, partial(PackedMean, reducer)) if requests else []
    replies = (mean or list)([unpacked(reply) for reply in arrived])
    reasons = {reply.metadata.src_node_id: _reason(reply.error) for reply in replies if reply.has_error()}
    merged = sum(clients_of(reply) for reply in replies if reply.has_content())
    if merged + len(reasons) != len(requests):
        raise FedMoEError(f"{stage}: {merged} replies and {len(reasons)} failures of {len(requests)} clients: a fault")
    return Exchange(
        sent=len(requests),
        replies=replies,
        failures=name_failures(reasons, stage, client_ids),
        bytes_down=payload(requests),
        bytes_up=_sent(replies),
    )


class Reducer(Protocol):
    """Merges replies; made where the clients live."""

    def add(self, reply: Message, num_bytes: int | None = None) -> None:
        """Take a reply, which had so many bytes on its way."""

    def replies(self) -> list[Message]:
        """Return what stands for all replies, and the errors."""


class PackedMean:
    """A mean that takes replies as they come off the wire, and gives what goes on it; made where the clients live."""

    def __init__(self, mean: Callable[[], Reducer]) -> None:
        self._mean = mean()

    def add(self, reply: Message) -> None:
        """Add a reply; damaged arrays make it an error."""
        num_bytes = payload([reply]) if reply.has_content() else 0
        self._mean.add(unpacked(reply), num_bytes)

    def replies(self) -> list[Message]:
        """Return the mean, if there is one, and the errors."""
        return packed(self._mean.replies())


def packed(messages: Iterable[Message], to_packed: Callable[[NamedArrays], ArrayRecord] = to_record) -> list[Message]:
    """Return messages as they go on the wire. A record or a content that several share is still shared.

    to_packed: makes the record of one packed array.
    """
    given = list(messages)
    holding = [each for each in given if each.has_content() and ARRAYS in each.content]
    contents = {id(message.content): message.content for message in holding}
    named = {id(content[ARRAYS]): content.array_records[ARRAYS] for content in contents.values()}
    records = {key: to_packed(_named(each)) for key, each in named.items()}
    changed = {
        key: RecordDict({**dict(content.items()), ARRAYS: records[id(content[ARRAYS])]})
        for key, content in contents.items()
    }
    on_the_wire = {id(message): _with(message, changed[id(message.content)]) for message in holding}
    return [on_the_wire.get(id(message), message) for message in given]


def _named(arrays: ArrayRecord) -> NamedArrays:
    """Return the values of arrays as they travel: of a table of which there are rows these alone, and their ids."""
    found: NamedArrays = {}
    for name, each in arrays.items():
        found |= {name: each.rows, name + ROWS: each.ids} if isinstance(each, TableRows) else {name: values_of(each)}
    return found


def unpacked(reply: Message) -> Message:
    """Return a reply with its arrays by name, or an error that says how they are damaged."""
    records = reply.content.array_records if reply.has_content() else {}
    try:
        changed = {
            key: record_of({name: Valued(values) for name, values in unpack(packed_bytes(record)).items()})
            for key, record in records.items()
            if is_packed(record)
        }
    except FedMoEError as error:
        return refused(reply, str(error))
    return _with(reply, RecordDict({**dict(reply.content.items()), **changed})) if changed else reply


def _with(message: Message, content: RecordDict) -> Message:
    """Return a message with another content; the one given keeps its own."""
    changed = copy.copy(message)
    changed.content = content
    return changed


def name_failures(reasons: Mapping[int, Reason], stage: str, client_ids: ClientIds) -> tuple[Failure, ...]:
    """Turn node id -> kind and reason into failures with the clients' ids, sorted by client."""
    if not reasons:
        return ()
    clients = client_ids()
    failures = [Failure(clients.get(node), node, stage, reason, kind) for node, (kind, reason) in reasons.items()]
    return tuple(sorted(failures, key=lambda f: (f.client is None, f.client or 0, f.node)))


def too_few(what: str, outcome: Exchange, minimum: float) -> str | None:
    """Say that too small a share of the clients replied, which and why; None if enough did.

    Args:
        what: the exchange in words, e.g. ``"round 3, train"``.
        minimum: smallest share of those asked that must have replied, in (0, 1].

    Raises:
        FedMoEError: nobody was asked.
    """
    if outcome.sent == 0:
        raise FedMoEError(f"{what}: the strategy chose no client; is any client connected?")
    replied = outcome.sent - len(outcome.failures)
    if replied > 0 and replied >= minimum * outcome.sent:
        return None
    return (
        f"{what}: only {replied} of {outcome.sent} clients replied, federation.min_reply_fraction asks for "
        f"{minimum:g}; failed: {list_failures(outcome.failures)}"
    )


def _answers(requests: Sequence[Message], arrived: Iterable[Message]) -> dict[int, Message]:
    """Return node -> its first reply to these requests; other replies are left out.

    Where the server itself answers for a node, with an error, only the message that is answered tells which node.
    """
    asked = {r.metadata.message_id: r.metadata.dst_node_id for r in requests if r.metadata.message_id}
    nodes = {request.metadata.dst_node_id for request in requests}
    answers: dict[int, Message] = {}
    for reply in arrived:
        node = asked.get(reply.metadata.reply_to_message_id) if asked else reply.metadata.src_node_id
        if node in nodes:
            answers.setdefault(node, reply)
    return answers


def _dropped(arrived: Iterable[Message], answers: Mapping[int, Message]) -> tuple[int, ...]:
    """Return the nodes of the messages that are nobody's answer, once for each."""
    left = {id(reply) for reply in answers.values()}
    dropped = []
    for message in arrived:
        if id(message) in left:
            left.remove(id(message))
        else:
            dropped.append(message.metadata.src_node_id)
    return tuple(sorted(dropped))


def _reason(error: Error) -> Reason:
    """Return what kind of failure an error is, and why on one line."""
    lines = (error.reason or "").strip().splitlines()  # a stranger's client app may send a whole traceback
    return FailureKind.of_code(error.code), one_line(lines[0] if lines else f"error {error.code}")


def plain_metrics(record: MetricRecord | None) -> Metrics:
    """Return the metrics of a record as floats that JSON can hold; those of a list as ``name/0``, ``name/1``, ...

    Not finite becomes None.
    """
    values: dict[str, float] = {}
    for key, value in ({} if record is None else record).items():
        values |= {f"{key}/{i}": each for i, each in enumerate(value)} if isinstance(value, list) else {key: value}
    return {key: float(value) if isfinite(value) else None for key, value in values.items()}


def _sent(replies: Iterable[Message]) -> int:
    """Sum the bytes of merged replies' clients."""
    return sum(counts_of(reply)["num-bytes"] for reply in replies if reply.has_content())


def payload(messages: Iterable[Message]) -> int:
    """Sum the payload bytes of messages; a record shared by many messages is measured once."""
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        for record in message.content.values():
            key = id(record)
            if key not in sizes:
                sizes[key] = size_of(record) if isinstance(record, ArrayRecord) else record.count_bytes()
            total += sizes[key]
    return total


def selection_score(metrics: Metrics, number: int) -> float:
    """Return the metric that chooses the best model."""
    value = metrics.get(SELECTION_METRIC)
    if value is None:
        raise FedMoEError(
            f"round {number}, validation: the clients reported no finite '{SELECTION_METRIC}', "
            f"which chooses the best model (got {', '.join(metrics) or 'no metrics'})"
        )
    return value
