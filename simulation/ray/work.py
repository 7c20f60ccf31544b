"""What travels between the driver and a host: how it is started, what it is to do, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Context, Message

from fedmoe.errors import FedMoEError
from simulation.flower_runtime import Metadata, Record, RunConfig

# Trains a stack of clients at once: (messages, contexts, reduce) -> replies. One for each message; or, where reduce is
# true, any number, each the mean of several clients (metric num-clients) or an error. States are left in the contexts.
Stacked = Callable[[Sequence[Message], Sequence[Context], bool], list[Message]]


class Reducer(Protocol):
    """Merges the replies of a round one by one, so that they need not be kept."""

    def add(self, reply: Message) -> None:
        """Take one reply, be it an error, or one that stands for several clients itself."""

    def replies(self) -> list[Message]:
        """Return what stands for all replies so far: merged ones with the metric ``num-clients``, and the errors."""


@dataclass(frozen=True)
class HostSettings:
    """What every host of a grid is started with.

    Attributes:
        app: ``"module:attribute"`` or a pickled ClientApp.
        num_clients: clients of the whole grid.
        run_id, run_config: in every client's context.
        stacked: ``"module:attribute"`` of a ``Stacked`` for train messages; None: they are executed one by one.
        state_memory: bytes of private state that a host keeps in memory.
    """

    app: str | bytes
    num_clients: int
    run_id: int
    run_config: RunConfig
    stacked: str | None = None
    state_memory: int = 512 << 20


class NotReceived(FedMoEError):
    """A host has messages of an exchange whose shared records got lost on the way, as if it had died since."""


@dataclass(frozen=True)
class Shared:
    """What the messages of one exchange have in common: records, and a factory of the reducer of their replies."""

    records: Sequence[Record]
    reducer: Callable[[], Reducer] | None = None


@dataclass(frozen=True)
class Job:
    """One message for one client. An ``int`` in ``content`` is the place of a shared record."""

    client_id: int
    metadata: Metadata
    content: Mapping[str, Record | int]


@dataclass(frozen=True)
class Work:
    """Messages to execute in one call, in their order.

    Attributes:
        call: key of the exchange, see ``ClientHost.receive``.
        jobs: the messages.
        last: whether these are the exchange's last messages for the host: a reducer then returns what it has.
    """

    call: int
    jobs: Sequence[Job]
    last: bool = False


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        replies: one for each message; with a reducer what it returned, for the last work.
        changed: (client id, serialised private state) of the clients whose state changed; empty: nothing is kept.
        notes: what the user should be told, once.
    """

    replies: list[Message] = field(default_factory=list)
    changed: list[tuple[int, bytes]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
