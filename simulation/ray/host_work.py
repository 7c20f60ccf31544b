"""What travels between the driver and a host: how it is started, what it is to do, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Context, Message

from simulation.client_call import RunConfig
from simulation.flower_runtime import Metadata, Record

# Trains a stack of clients at once: (messages, contexts, reduce) -> replies. One for each message; or, where reduce is
# true, any number, each the mean of several clients (metric num-clients) or an error. States are left in the contexts.
Stacked = Callable[[Sequence[Message], Sequence[Context], bool], list[Message]]


@dataclass(frozen=True)
class HostSettings:
    """What every host of a grid is started with.

    Attributes:
        app: ``"module:attribute"`` or a pickled ClientApp.
        num_clients: clients of the whole grid.
        run_id, run_config: in every client's context.
        stacked: ``"module:attribute"`` of a function that executes train messages in stacks; None: one by one.
        state_memory: bytes of private state that a host keeps in memory.
    """

    app: str | bytes
    num_clients: int
    run_id: int
    run_config: RunConfig
    stacked: str | None = None
    state_memory: int = 512 << 20


@dataclass(frozen=True)
class Job:
    """One message for one client. An ``int`` in ``content`` stands for a record that ``ClientHost.receive`` got.

    ``state``: the serialised private state of a guest, a client that another host keeps; None: it is kept here.
    """

    client_id: int
    metadata: Metadata
    content: Mapping[str, Record | int]
    state: bytes | None = None


@dataclass(frozen=True)
class Work:
    """Messages to execute in one call, in their order.

    Attributes:
        jobs: the messages.
        deadline: none is begun after it (Unix time, s); None: no deadline.
        reducer: key of the received factory of the reducer that takes the replies; None: the replies themselves travel.
        last: whether the reducer is to return what it has.
    """

    jobs: Sequence[Job]
    deadline: float | None = None
    reducer: int | None = None
    last: bool = False


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        replies: one for each message, None for those not begun; with a reducer what it returned, if it was the last
            work.
        changed: (client id, serialised private state) of the clients whose state changed; empty: nothing is kept.
        notes: what the user should be told, once.
    """

    replies: list[Message | None] = field(default_factory=list)
    changed: list[tuple[int, bytes]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
