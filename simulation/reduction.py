"""Replies that are merged where the clients live."""

from __future__ import annotations

from typing import Protocol

from flwr.app import Message

CLIENTS = "num-clients"  # metric of a reply that stands for several clients: how many


class Reducer(Protocol):
    """Merges the replies of a round one by one, so that they need not be kept."""

    def add(self, reply: Message) -> None:
        """Take one reply, be it an error, or one that stands for several clients itself."""

    def replies(self) -> list[Message]:
        """Return what stands for all replies so far: merged ones with the metric ``num-clients``, and the errors."""


def clients_in(reply: Message) -> int:
    """Return the number of clients that a reply stands for."""
    if reply.has_content():
        for record in reply.content.metric_records.values():
            if isinstance(count := record.get(CLIENTS), int):
                return count
    return 1
