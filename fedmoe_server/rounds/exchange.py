"""One exchange of messages with the clients: what came back, who failed and why, and how many bytes travelled.

Here the model's arrays go on the wire and come off it: all else at the server sees them by their names. What a strategy
puts into records of other names travels as it is.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import FedMoEError
from fedmoe.failures import FailureKind
from fedmoe.wire import is_packed, packed_bytes, to_record, unpack
from strategies import ReplyMean, counts_of
from strategies.arrays import Valued, record_of, values_of
from strategies.layers.guards import refused

ClientIds = Callable[[], Mapping[int, int]]
REASON_LENGTH = 300
ARRAYS = "arrays"  # the record of a message that holds the model
SENDING = 10.0  # seconds that a message may need on its way; the deadline counts from when all are sent
NAMED = 3  # failures named in one line
RAISED = re.compile(r"^<class '(?:[\w.]+\.)?(?P<type>\w+)'>:<'(?P<message>.*?)(?:'>)?$")
PREFIX = re.compile(r"^client \d+: (train|evaluate|query): ")


@dataclass(frozen=True)
class Failure:
    """A client that was asked and gave nothing usable.

    Attributes:
        client: its client id, None where the node is not (or no longer) known.
        node: its node id.
        stage: what it was asked for: ``train``, ``validation`` or ``test``.
        reason: why it failed, one line.
    """

    client: int | None
    node: int
    stage: str
    reason: str

    def __str__(self) -> str:
        return f"{self.who} ({self.stage}): {self.reason}"

    @property
    def who(self) -> str:
        """The client's name for people: its client id, or the node's id where no client is known."""
        return f"node {self.node}" if self.client is None else f"client {self.client}"


@dataclass
class Exchange:
    """The outcome of one exchange.

    Attributes:
        sent: number of clients asked.
        replies: everything that came back, error replies included (strategies expect to see those).
        failures: the clients that failed, sorted by client.
        bytes_down, bytes_up: payload bytes sent to and received from all clients.
        dropped: replies that nobody waited for any more: late ones to an earlier message, or second ones; by node.
        problem: why the exchange is worth nothing as a whole, None if it is worth something.
    """

    sent: int
    replies: list[Message]
    failures: list[Failure] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    dropped: list[int] = field(default_factory=list)
    problem: str | None = None


def exchange(
    grid: Grid, messages: Iterable[Message], stage: str, client_ids: ClientIds, timeout: float | None
) -> Exchange:
    """Send messages, wait for the replies and account for every client that was asked.

    Args:
        stage: what the clients are asked for, see ``Failure``.
        client_ids: returns node id -> client id; called only when a failure has to be named.
        timeout: seconds to wait; None: until every client has answered or failed.
    """
    requests = packed(messages)
    if timeout is not None:
        for message in requests:  # a node that comes back later must not begin with it any more
            message.metadata.ttl = timeout + SENDING
    arrived = list(grid.send_and_receive(requests, timeout=timeout)) if requests else []
    answers = _answers(requests, arrived)
    replies = {node: unpacked(reply) for node, reply in answers.items()}
    reasons = {m.metadata.dst_node_id: "no reply in time" for m in requests}
    for node, reply in replies.items():
        if reply.has_error():
            reasons[node] = _reason(reply)
        else:
            reasons.pop(node, None)
    return Exchange(
        sent=len(requests),
        replies=list(replies.values()),
        failures=name_failures(reasons, stage, client_ids),
        bytes_down=_payload(requests),
        bytes_up=_payload(reply for reply in answers.values() if reply.has_content()),
        dropped=_dropped(arrived, answers),
    )


@runtime_checkable
class ReducingGrid(Protocol):
    """A grid that can merge replies where the clients live."""

    def send_and_reduce(self, messages: Iterable[Message], reducer: Callable[[], PackedMean]) -> list[Message]:
        """Return what each reducer made of the replies it got; every reply is in a merged one, or an error."""


def reduced_exchange(
    grid: ReducingGrid,
    messages: Iterable[Message],
    stage: str,
    client_ids: ClientIds,
    reducer: Callable[[], ReplyMean],
) -> Exchange:
    """Do what ``exchange`` does, without a time limit, with replies that are merged where the clients live.

    The merged replies count their clients and the bytes that these would have sent; a refused reply is an error, and
    its bytes are not counted.
    """
    requests = packed(messages)
    arrived = grid.send_and_reduce(requests, partial(PackedMean, reducer)) if requests else []
    replies = [unpacked(reply) for reply in arrived]
    reasons = {}
    merged = bytes_up = 0
    for reply in replies:
        if reply.has_error():
            reasons[reply.metadata.src_node_id] = _reason(reply)
        else:
            counts = counts_of(reply)
            merged, bytes_up = merged + counts["num-clients"], bytes_up + counts["num-bytes"]
    if merged + len(reasons) != len(requests):
        raise FedMoEError(f"{stage}: {merged} replies and {len(reasons)} failures of {len(requests)} clients: a fault")
    return Exchange(
        sent=len(requests),
        replies=replies,
        failures=name_failures(reasons, stage, client_ids),
        bytes_down=_payload(requests),
        bytes_up=bytes_up,
    )


class PackedMean:
    """A mean that takes replies as they come off the wire, and gives what goes on it; made where the clients live."""

    def __init__(self, mean: Callable[[], ReplyMean]) -> None:
        self._mean = mean()

    def add(self, reply: Message) -> None:
        """Add a reply; damaged arrays make it an error."""
        num_bytes = _payload([reply]) if reply.has_content() else 0
        self._mean.add(unpacked(reply), num_bytes)

    def replies(self) -> list[Message]:
        """Return the mean, if there is one, and the errors."""
        return packed(self._mean.replies())


def packed(messages: Iterable[Message]) -> list[Message]:
    """Return messages as they go on the wire. A record or a content that several share is still shared."""
    records: dict[int, ArrayRecord] = {}
    contents: dict[int, RecordDict] = {}
    found = []
    for message in messages:
        if message.has_content():
            content = message.content
            arrays = content.array_records.get(ARRAYS)
            if arrays is not None and id(arrays) not in records:
                records[id(arrays)] = to_record({name: values_of(array) for name, array in arrays.items()})
            if arrays is not None and id(content) not in contents:
                contents[id(content)] = RecordDict({**dict(content.items()), ARRAYS: records[id(arrays)]})
            message = _with(message, contents.get(id(content), content))
        found.append(message)
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


def _reason(reply: Message) -> str:
    """Return why a reply is an error."""
    refusal = "reply refused: " if reply.error.code == FailureKind.REFUSED else ""
    return refusal + (reply.error.reason or f"error {reply.error.code}")


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


def _dropped(arrived: Iterable[Message], answers: Mapping[int, Message]) -> list[int]:
    """Return the nodes of the messages that are nobody's answer, once for each."""
    left = {id(reply) for reply in answers.values()}
    dropped = []
    for message in arrived:
        if id(message) in left:
            left.remove(id(message))
        else:
            dropped.append(message.metadata.src_node_id)
    return sorted(dropped)


def name_failures(reasons: Mapping[int, str], stage: str, client_ids: ClientIds) -> list[Failure]:
    """Turn node id -> reason into failures with the clients' names, sorted by client."""
    if not reasons:
        return []
    clients = client_ids()
    failures = [Failure(clients.get(node), node, stage, _one_line(reason)) for node, reason in reasons.items()]
    return sorted(failures, key=lambda f: (f.client is None, f.client or 0, f.node))


def list_failures(failures: Sequence[Failure]) -> str:
    """Return the first failures in words, and how many more there are."""
    more = f"; and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
    return "; ".join(str(failure) for failure in failures[:NAMED]) + more


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


def _one_line(reason: str) -> str:
    """Cut a reason to its first line, without the client and stage that the engine may have put in front of it."""
    lines = reason.strip().splitlines()
    line = lines[0].strip() if lines else "no reason given"
    if raised := RAISED.match(line):  # how Flower's SuperNode puts what a client app raised
        line = raised["message"] if raised["type"] == "FedMoEError" else f"{raised['type']}: {raised['message']}"
    line = PREFIX.sub("", line)
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."


def _payload(messages: Iterable[Message]) -> int:
    """Sum the payload bytes of messages; a record shared by many messages is measured once."""
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        for record in message.content.values():
            key = id(record)
            if key not in sizes:
                sizes[key] = record.count_bytes()
            total += sizes[key]
    return total
