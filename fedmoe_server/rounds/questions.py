"""What a strategy asks clients of its own accord: packed and unpacked as a round's messages are, and counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedmoe_server.rounds.exchange import packed, payload, unpacked
from strategies.layers.course import GridAround


@Grid.register
@dataclass
class WireGrid(GridAround):
    """A grid that packs messages and unpacks their replies.

    timeout: seconds to wait where the strategy names no time; None: until every client has answered or failed.
    bytes_down, bytes_up: of the questions and their answers.
    """

    grid: Grid
    timeout: float | None
    bytes_down: int = 0
    bytes_up: int = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies with their arrays by name; a damaged one is an error."""
        return self._received(self.grid.send_and_receive(self._sent(messages), timeout=timeout or self.timeout))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self.grid.push_messages(self._sent(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come to messages of these ids."""
        return self._received(self.grid.pull_messages(message_ids))

    def _sent(self, messages: Iterable[Message]) -> list[Message]:
        on_the_wire = packed(messages)
        self.bytes_down += payload(on_the_wire)
        return on_the_wire

    def _received(self, replies: Iterable[Message]) -> list[Message]:
        arrived = list(replies)
        self.bytes_up += payload(reply for reply in arrived if reply.has_content())
        return [unpacked(reply) for reply in arrived]
