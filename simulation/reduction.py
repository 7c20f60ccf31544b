"""Replies that are merged where the clients live, and what must not get lost when they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message, MetricRecord

CLIENTS = "num-clients"  # metric of a reply that stands for several clients: how many
BYTES_UP = "bytes-up"  # metric of such a reply: what those clients would have sent, in bytes


class Reducer(Protocol):
    """Merges the replies of a round one by one, so that they need not be kept."""

    def add(self, reply: Message) -> None:
        """Take one reply, be it an error."""

    def replies(self) -> list[Message]:
        """Return what stands for all replies so far: merged ones with the metric ``num-clients``, and the errors."""


@dataclass(frozen=True)
class Reduced:
    """The outcome of an exchange whose replies were merged by host.

    Attributes:
        replies: what the hosts' reducers returned, host by host: merged replies and errors.
        bytes_up: payload bytes of all replies before they were merged: what real clients would have sent.
    """

    replies: list[Message]
    bytes_up: int


def clients_in(reply: Message) -> int:
    """Return the number of clients that a reply stands for."""
    record = None if reply.has_error() else _metrics(reply, CLIENTS)
    return 1 if record is None else int(record[CLIENTS])  # type: ignore[arg-type]


def take_bytes_up(reply: Message) -> int:
    """Return the payload bytes that the clients behind a reply would have sent, and take that metric out of it.

    A merged reply says so itself (``bytes-up``); one that does not is taken for as many replies of its own size.
    """
    if reply.has_error():
        return 0
    record = _metrics(reply, BYTES_UP)
    if record is not None:
        return int(record.pop(BYTES_UP))  # type: ignore[arg-type]
    return clients_in(reply) * sum(record.count_bytes() for record in reply.content.values())


def _metrics(reply: Message, name: str) -> MetricRecord | None:
    return next((record for record in reply.content.metric_records.values() if name in record), None)
