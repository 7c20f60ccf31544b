"""The driver's side of one host: its actor, the chunks it has yet to do, and how it is started."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Message
from flwr.clientapp import ClientApp
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from fedmoe.errors import FedMoEError
from simulation.ray.client_host import ClientHost
from simulation.ray.cluster import worker_environment
from simulation.ray.host_work import HostSettings, Job, Work

IN_FLIGHT = 2  # chunks that an actor has at once: one it works on, and the next, so that it need not wait for it
ADOPTED_BYTES = 32 << 20  # of clients' state in one call
LOADING_LOOK = 2.0  # seconds between two looks whether there is still room for a host that does not come up


@dataclass
class Call:
    """One exchange of messages with any number of hosts.

    Attributes:
        key: its number.
        shared: reference of what the hosts need besides the messages: key -> a record that many of these carry, or the
            reducer's factory.
        keys: those of ``shared``.
        record_keys: ``id()`` of a record of the messages -> its key.
        deadline: see ``Work``.
        reducer: key of the reducer's factory; None: all replies come back.
        wanted: False once nobody waits for the replies.
        guests: client id -> serialised private state, of the clients that are executed by another host than theirs.
        merged: by host: what its reducer returned, and errors; filled in any order.
    """

    key: int
    shared: Any
    keys: Sequence[int]
    record_keys: dict[int, int]
    deadline: float | None = None
    reducer: int | None = None
    wanted: bool = True
    guests: Mapping[int, bytes] = field(default_factory=dict)
    merged: dict[int, list[Message]] = field(default_factory=dict)

    def replies(self) -> list[Message]:
        """Return what is left of merged replies, host by host: sums must not depend on which one was first."""
        return [reply for _, replies in sorted(self.merged.items()) for reply in replies]


@dataclass
class Chunk:
    """Messages of a call that a host executes at once, with the number of each one's client.

    ``last``: of its call and host. ``done``: its replies, errors among them, are there.
    """

    call: Call
    requests: Sequence[Message]
    client_ids: Sequence[int]
    last: bool = False
    done: bool = False
    reference: Any = None

    def work(self) -> Work:
        """Return it as it travels: records that are shared as their keys."""
        keys = self.call.record_keys
        contents = {id(request.content): request.content for request in self.requests}
        travelling = {
            identity: {name: keys.get(id(record), record) for name, record in content.items()}
            for identity, content in contents.items()
        }
        jobs = [
            Job(client_id, request.metadata, travelling[id(request.content)], self.call.guests.get(client_id))
            for client_id, request in zip(self.client_ids, self.requests, strict=True)
        ]
        return Work(jobs, self.call.deadline, self.call.reducer, self.last)


class RayHost:
    """One Ray actor and what it owes. It executes its chunks in the order in which it got them.

    Attributes:
        working: chunks that the actor has, oldest first.
        deaths: how often the actor has died since it last owed nothing.
        homecoming: state of clients that were another host's guests, on its way to the actor.
    """

    def __init__(self, index: int, settings: HostSettings, client_cpus: float, client_gpus: float) -> None:
        """Start the actor, without waiting for it."""
        self.index = index
        self._settings = settings
        self._client_cpus = client_cpus
        self._client_gpus = client_gpus
        self.working: deque[Chunk] = deque()
        self.deaths = 0
        self._waiting: deque[Chunk] = deque()
        self._merged: list[Chunk] = []  # done, but their replies are in the actor's reducer yet
        self.start(crowded=False)

    # --- the actor -------------------------------------------------------------------------------------------------

    def start(self, crowded: bool) -> None:
        """Start the actor. ``crowded``: beside the others of a machine, which is left with too little for all."""
        actor_class: Any = ray.remote(ClientHost)
        self._actor: Any = actor_class.options(
            num_cpus=0 if crowded else self._client_cpus,
            num_gpus=0 if crowded else self._client_gpus,
            scheduling_strategy="SPREAD",  # over the machines of a cluster, as many as fit on each
            max_restarts=0,  # a restarted actor has lost its clients' state: the fleet starts it again itself
            runtime_env={"env_vars": worker_environment(self._client_cpus, self._client_gpus)},
        ).remote(self._settings)
        self._crowded = crowded
        self._known: set[int] = set()  # calls whose shared records the actor has
        self.homecoming: list[Any] = []
        self._loading = self._actor.load.remote()

    def wait_until_loaded(self, fits: Callable[[], bool]) -> None:
        """Wait for the ClientApp's import; ``fits``: whether the cluster has, by now, room for all hosts.

        Raises FedMoEError if the import fails, or (HostDied) if the actor dies of it.
        """
        while not ray.wait([self._loading], timeout=LOADING_LOOK)[0]:
            if not self._crowded and not fits():
                self.stop()
                self.start(crowded=True)
        self.result(self._loading, "loading the client app")

    def stop(self) -> None:
        """End the actor at once."""
        ray.kill(self._actor)

    # --- chunks ----------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether it owes nothing."""
        return not self.working and not self._waiting

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Have chunks executed after those that it has got."""
        self._waiting.extend(chunks)
        self.go_on()

    def go_on(self) -> None:
        """Hand chunks to the actor, a few at a time: their replies take up memory until they are read."""
        while self._waiting and len(self.working) < IN_FLIGHT:
            chunk = self._waiting.popleft()
            if chunk.call.key not in self._known:
                self._known.add(chunk.call.key)
                self._actor.receive.options(num_returns=0).remote(chunk.call.shared)
            chunk.reference = self._actor.execute.remote(chunk.work())
            self.working.append(chunk)

    def finish(self) -> Chunk:
        """Take the oldest chunk off the actor's list, its outcome having come."""
        chunk = self.working.popleft()
        chunk.done, chunk.reference = True, None  # or the object store would keep the outcome until the call is over
        if chunk.last:
            self._forget(chunk.call)
        elif chunk.call.reducer is not None:
            self._merged.append(chunk)
        if self.idle:
            self.deaths = 0
        self.go_on()
        return chunk

    def give_up(self, call: Call) -> None:
        """Do no more of a call; what the actor is at it finishes."""
        self._waiting = deque(chunk for chunk in self._waiting if chunk.call is not call)
        self._forget(call)

    def unfinished(self) -> list[Chunk]:
        """Take everything off the list that is not done for good, and return it in order; begin all calls anew."""
        chunks = [*self._merged, *self.working, *self._waiting]
        for call in {chunk.call.key: chunk.call for chunk in chunks}.values():
            self._forget(call)
        self._merged, self.working, self._waiting = [], deque(), deque()
        for chunk in chunks:
            chunk.done = False
        return chunks

    def _forget(self, call: Call) -> None:
        self._merged = [chunk for chunk in self._merged if chunk.call is not call]
        if call.key in self._known:
            self._known.remove(call.key)
            self._actor.forget.options(num_returns=0).remote(list(call.keys))

    # --- private state ---------------------------------------------------------------------------------------------

    def save(self, path: str) -> Any:
        """Begin to write the clients' state; pass what is returned to ``result``."""
        return self._actor.save.remote(path)

    def restore(self, paths: Sequence[str], pinning: Any) -> Any:
        """Begin to replace the clients' state by that in files; pass what is returned to ``result``."""
        return self._actor.restore.remote(list(paths), pinning, self.index)

    def states(self, client_ids: Sequence[int]) -> Any:
        """Begin to fetch some clients' state; pass what is returned to ``result``."""
        return self._actor.states.remote(list(client_ids))

    def adopt(self, states: Sequence[tuple[int, bytes]]) -> Any:
        """Begin to replace some clients' state; pass what is returned to ``result``."""
        return self._actor.adopt.remote(states)

    def replace(self, states: Iterator[tuple[int, bytes]]) -> int:
        """Replace the clients' state; return the number of clients. Raises FedMoEError (HostDied) if that fails."""
        doing = "restoring its clients' state"
        self.result(self._actor.clear.remote(), doing)
        batch: list[tuple[int, bytes]] = []
        size = 0
        for client_id, state in states:
            batch.append((client_id, state))
            size += len(state)
            if size > ADOPTED_BYTES:
                self.result(self.adopt(batch), doing)
                batch, size = [], 0
        count: int = self.result(self.adopt(batch), doing)
        return count

    def result(self, reference: Any, doing: str) -> Any:
        """Wait for what has been begun and return it: of most, a number of clients.

        Raises FedMoEError if it failed, and HostDied if the actor is gone.
        """
        try:
            return ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, FedMoEError):
                raise FedMoEError(str(error.cause)) from None
            raise FedMoEError(f"host {self.index} failed while {doing}: {first_line(error.cause)}") from error
        except RayError as error:
            raise HostDied(f"host {self.index} died while {doing}: {first_line(error)}") from error


class HostDied(FedMoEError):
    """The actor's process is gone, and with it what it had not handed over."""


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an exception's message: Ray's go on for a page."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def pickled_app(app: ClientApp) -> bytes:
    """Serialise a ClientApp object for the hosts. Raises FedMoEError if it cannot be done."""
    try:
        data: bytes = cloudpickle.dumps(app)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise FedMoEError(
            f"the ClientApp object cannot be sent to the clients' hosts ({first_line(error)}): "
            "name it as 'module:attribute' instead"
        ) from error
    return data
