"""What a strategy asks clients of its own accord, beside the messages of a round.

A grid of these stands in place of the run's while a strategy configures a round or an evaluation. Its messages are made
complete and its replies are judged as those of a round are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Array, Message
from flwr.serverapp import Grid

from strategies.layers.course import GridAround
from strategies.layers.layer import Models, kind_of, shown
from strategies.layers.replies import Guard


class GridBetween(GridAround):
    """Another grid, whose messages and replies a subclass changes on their way."""

    def outgoing(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages as they are sent."""
        return list(messages)

    def incoming(self, replies: Iterable[Message]) -> list[Message]:
        """Return replies as whoever asked is to see them."""
        return list(replies)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies."""
        return self.incoming(self.grid.send_and_receive(self.outgoing(messages), timeout=timeout))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self.grid.push_messages(self.outgoing(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come to messages of these ids."""
        return self.incoming(self.grid.pull_messages(message_ids))


@Grid.register
@dataclass(frozen=True)
class TalkingGrid(GridBetween):
    """A grid whose messages are made ready before they are sent.

    ready: returns messages as they are sent, or raises FedMoEError for those that may not be.
    """

    grid: Grid
    ready: Callable[[Iterable[Message]], list[Message]]

    def outgoing(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages, ready."""
        return self.ready(messages)


@Grid.register
@dataclass(frozen=True)
class GuardedGrid(TalkingGrid):
    """A grid whose replies pass the guards of a round's.

    expected: the round's shared arrays. models: tells what training messages, as they are sent, hold in their place.
    guard: returns the guard for replies with these arrays (None: without any), those of some nodes being others.
    """

    expected: Mapping[str, Array]
    models: Callable[[list[Message]], Models]
    guard: Callable[[Mapping[str, Array] | None, Models], Guard]
    own: Models = field(default_factory=dict)  # of the latest message to each node

    def outgoing(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages, ready, and take note of the models that they hold."""
        ready = self.ready(messages)
        for message in ready:
            self.own.pop(message.metadata.dst_node_id, None)
        self.own.update(self.models([message for message in ready if kind_of(message) == "train"]))
        return ready

    def incoming(self, replies: Iterable[Message]) -> list[Message]:
        """Return replies as those of a round are shown, a bad one as an error; answers to queries are as they came."""
        given = list(replies)
        found = [reply for reply in given if kind_of(reply) not in ("train", "evaluate")]
        for kind, expected in (("train", self.expected), ("evaluate", None)):
            of_kind = [reply for reply in given if kind_of(reply) == kind]
            checked, _ = self.guard(expected, self.own).checked(of_kind)
            found += [shown(reply, expected) if expected is not None else reply for reply in checked]
        return found
