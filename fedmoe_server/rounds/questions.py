"""What a strategy asks clients of its own accord: packed and unpacked as a round's messages are, and counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedmoe_server.rounds.exchange import packed, payload, unpacked
from strategies.layers.talk import GridBetween


@Grid.register
@dataclass
class WireGrid(GridBetween):
    """A grid that packs messages and unpacks their replies.

    timeout: seconds to wait where the strategy names no time; None: until every client has answered or failed.
    bytes_down, bytes_up: of the questions and their answers.
    """

    grid: Grid
    timeout: float | None
    bytes_down: int = 0
    bytes_up: int = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies that came in time."""
        return super().send_and_receive(messages, timeout=timeout or self.timeout)

    def outgoing(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages as they go on the wire."""
        on_the_wire = packed(messages)
        self.bytes_down += payload(on_the_wire)
        return on_the_wire

    def incoming(self, replies: Iterable[Message]) -> list[Message]:
        """Return replies with their arrays by name; a damaged one is an error."""
        arrived = list(replies)
        self.bytes_up += payload(reply for reply in arrived if reply.has_content())
        return [unpacked(reply) for reply in arrived]
