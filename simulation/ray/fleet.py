"""The hosts of a grid as the driver sees them: their start, what they owe, the recovery of one that dies, checkpoints.

Hosts hand every changed private state over with the replies of the messages that changed it, and the fleet keeps it:
the last checkpoint and what has changed since. So when a host dies, no reply that has come is lost, and the others are
made again by the same clients in the same state.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import ray
from flwr.app import Message
from numpy.typing import ArrayLike
from ray.exceptions import RayError, RayTaskError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedmoe.errors import FailureKind, FedMoEError, reason_of
from fedmoe.settings import SimulationSettings
from simulation.flower_runtime import Record
from simulation.ray.client_files import open_clients, read_clients, write_clients
from simulation.ray.cluster import host_capacity, number_of_hosts, pin_clients, start_ray, worker_environment
from simulation.ray.host import ClientHost, StateTable
from simulation.ray.work import HostSettings, NotReceived

DEATHS = 3  # of a host in one exchange, until its messages are answered with errors
ADOPTED_CLIENTS = 64  # whose state a host gets in one call
STAGED_MEMORY = 32 << 20  # bytes a host
LOADING_LOOK = 2.0  # seconds between two looks whether there is still room for a host that does not come up

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Call:
    """One exchange of messages with any number of hosts.

    Attributes:
        shared: reference of the ``Shared`` of its messages.
        contents: ``id()`` of a message's content -> the content as it travels.
        deadline: no message is begun after it (``time.monotonic``, s); None: no deadline.
        merges: whether the replies are merged in the hosts.
        wanted: False once nobody waits for the replies.
        left: chunks that are not done.
        merged: by host: what its reducer returned, and errors; filled in any order.
    """

    key: int
    shared: Any
    contents: Mapping[int, Mapping[str, Record | int]]
    deadline: float | None
    merges: bool
    wanted: bool = True
    left: int = 0
    merged: dict[int, list[Message]] = field(default_factory=dict)


@dataclass(eq=False)
class Chunk:
    """Messages of a call that a host executes at once; ``last``: of the call, for this host.

    ``reference``: of the outcome, while the actor has the chunk.
    """

    call: Call
    requests: Sequence[Message]
    last: bool
    reference: Any = None


@dataclass(eq=False)
class RemoteHost:
    """One host's actor and what it owes; it executes chunks in the order in which it gets them.

    Attributes:
        chunks: not done yet; the actor has the first few.
        merged: chunks whose replies are in the actor's reducer until their call's last chunk is done.
        staged: private state that the merged chunks changed: it counts when their replies do.
        known: calls whose shared records the actor has.
        deaths: how often the actor has died since it last owed nothing.
        crowded: whether it was started on a machine that has too little left for all.
    """

    index: int
    chunks: deque[Chunk] = field(default_factory=deque)
    merged: list[Chunk] = field(default_factory=list)
    staged: StateTable = field(default_factory=lambda: StateTable(STAGED_MEMORY))
    known: set[int] = field(default_factory=set)
    deaths: int = 0
    crowded: bool = False
    actor: Any = None
    loading: Any = None


class HostDied(FedMoEError):
    """The actor's process is gone, and with it what it had not handed over."""


class Fleet:
    """The hosts, and all clients' private state as of the last replies that count.

    Attributes:
        hosts: by index; none once the fleet is closed.
        pinning: the host of each client, int32 ``[num_clients]``.
        changed: states that differ from the snapshot's; an empty one: the client keeps nothing any more.
    """

    def __init__(self, settings: HostSettings, resources: SimulationSettings, loads: ArrayLike | None) -> None:
        """Start Ray, unless it runs already, and the hosts, without waiting for these."""
        self.hosts: list[RemoteHost] = []
        self.changed = StateTable(memory=0)
        self._snapshot: BinaryIO | None = None
        self._settings = settings
        self._resources = resources
        self._owns_ray = start_ray(resources.ray_address)
        try:
            count = number_of_hosts(resources, settings.num_clients)
            self.pinning = pin_clients(settings.num_clients, count, loads)
            self.hosts += [RemoteHost(index) for index in range(count)]
            for host in self.hosts:
                self._start(host)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the hosts, and Ray if this fleet has started it. May be called more than once."""
        for host in self.hosts:
            ray.kill(host.actor)
        self.hosts.clear()
        self._begin_at(None)
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()

    def wait_until_loaded(self) -> None:
        """Wait until all hosts have imported the client app. Raises FedMoEError if one cannot."""
        if not self.hosts:
            raise FedMoEError("the simulation's grid has been closed: start a new run")
        for host in self.hosts:
            self._wait_until_loaded(host)

    def _start(self, host: RemoteHost, crowded: bool = False) -> None:
        """Start the actor. ``crowded``: beside the others of a machine, which is left with too little for all."""
        resources, actor = self._resources, cast(Any, ray.remote(ClientHost))
        group = get_current_placement_group()
        host.actor = actor.options(
            num_cpus=0 if crowded else resources.client_cpus,
            num_gpus=0 if crowded else resources.client_gpus,
            # On what was set aside for a trial of a search; else over the machines, as many as fit on each.
            scheduling_strategy="SPREAD" if group is None else PlacementGroupSchedulingStrategy(group),
            max_restarts=0,  # a restarted actor has lost its clients' state: the fleet starts it again itself
            runtime_env={"env_vars": worker_environment(resources)},
        ).remote(self._settings)
        host.crowded = crowded
        host.loading = host.actor.load.remote()

    def _wait_until_loaded(self, host: RemoteHost) -> None:
        while not ray.wait([host.loading], timeout=LOADING_LOOK)[0]:
            if not host.crowded and not self._fits():
                ray.kill(host.actor)
                self._start(host, crowded=True)
        _result(host, host.loading, "loading the client app")

    def _fits(self) -> bool:
        """Return whether the cluster has, by now, room for all hosts."""
        return host_capacity(self._resources) >= len(self.hosts)

    # --- hosts that fail or die ------------------------------------------------------------------------------------

    def recover(self, host: RemoteHost, error: Exception) -> tuple[list[Chunk], FailureKind, str]:
        """Bring a host that has failed (RayTaskError) or died back to where it was at the last replies that count.

        It owes what it owed, but for the chunks that are returned, with the reason: they are to be answered with
        errors. After a failure these are the chunk at work and, if its replies are merged, its whole call; after the
        third death, all. Raises FedMoEError if the host does not come up.
        """
        owed = [*host.merged, *host.chunks]
        for chunk in host.merged:
            chunk.call.left += 1
        for chunk in owed:
            chunk.reference = None
        lost: list[Chunk] = []
        if isinstance(error, RayTaskError) and not isinstance(error.cause, NotReceived):
            kind, reason = FailureKind.RAISED, f"its host failed: {reason_of(error.cause)}"
            failed = host.chunks[0]
            lost = [chunk for chunk in owed if chunk is failed or (chunk.call is failed.call and failed.call.merges)]
        else:
            kind = FailureKind.LOST
            reason = f"host {host.index} died before it replied, {DEATHS} times ({reason_of(error)})"
            host.deaths += 1
            if host.deaths == DEATHS:
                lost, host.deaths = owed, 0
        host.merged.clear()
        host.staged.clear()
        host.chunks = deque(chunk for chunk in owed if chunk not in lost and chunk.call.wanted)
        self._restore(host)
        return lost, kind, reason

    def _restore(self, host: RemoteHost) -> int:
        """Replace the private state of a host's clients by the one that counts; return the number of clients.

        If the actor is dead, another one is started. Raises HostDied if that does not help.
        """
        try:
            return self._hand_over_states(host)
        except HostDied as error:
            restored = self._start_again(host)
            logger.warning(
                "host %d died and was started again with the state of %d clients; it does %d messages once more (%s)",
                *(host.index, restored, sum(len(chunk.requests) for chunk in host.chunks), error),
            )
            return restored

    def _start_again(self, host: RemoteHost, attempts: int = DEATHS) -> int:
        ray.kill(host.actor)
        self._start(host, crowded=not self._fits())
        try:
            self._wait_until_loaded(host)
            return self._hand_over_states(host)
        except HostDied:
            if attempts == 1:
                raise
            return self._start_again(host, attempts - 1)

    def _hand_over_states(self, host: RemoteHost) -> int:
        host.known.clear()
        states, count = self._states(host.index), 0
        _result(host, host.actor.adopt.remote([], True), "taking its clients' state")
        while batch := list(islice(states, ADOPTED_CLIENTS)):
            _result(host, host.actor.adopt.remote(batch), "taking its clients' state")
            count += len(batch)
        return count

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> int:
        """Write the private state of all clients that have any to a file; return their number."""
        count = write_clients(path, len(self.pinning), self._states())
        self._begin_at(path)
        return count

    def load(self, path: Path) -> int:
        """Replace all clients' private state by that in a file; return their number. No host may owe anything.

        Raises FedMoEError for a file that is damaged, or of a federation of another size.
        """
        self._begin_at(path)
        return sum(self._restore(host) for host in self.hosts)

    def _begin_at(self, snapshot: Path | None) -> None:
        """Go on from a file of all clients' state; None: nobody has any.

        The file stays open, so the caller may rename its folder, or delete it once there is a newer one.
        """
        before, self._snapshot = self._snapshot, None if snapshot is None else open_clients(snapshot)
        if before is not None:
            before.close()
        self.changed.clear()

    def _states(self, host: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (client id, state) of a host's clients that keep something; None: of all clients."""

        def wanted(client_id: int) -> bool:
            return host is None or bool(self.pinning[client_id] == host)

        if self._snapshot is not None:
            saved = read_clients(self._snapshot, len(self.pinning), wanted)
            yield from ((client_id, state) for client_id, state in saved if self.changed.get(client_id) is None)
        yield from ((client_id, state) for client_id, state in self.changed.items() if state and wanted(client_id))


def _result(host: RemoteHost, reference: Any, doing: str) -> Any:
    """Wait for what a host has begun and return it. FedMoEError: it failed; HostDied: the actor is gone."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, FedMoEError):
            raise FedMoEError(str(error.cause)) from None
        raise FedMoEError(f"host {host.index} failed while {doing}: {reason_of(error.cause)}") from error
    except RayError as error:
        raise HostDied(f"host {host.index} died while {doing}: {reason_of(error)}") from error
