"""All hosts of a grid: they work off their chunks, and one that dies is started again and does its part once more."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from flwr.app import Message
from ray.exceptions import RayError, RayTaskError

from fedmoe.errors import FedMoEError
from simulation.flower_runtime import CLIENT_RAISED, HOST_DIED, error_reply, number_message
from simulation.pinning import Pinning
from simulation.ray.cluster import host_capacity
from simulation.ray.host import Call, Chunk, HostDied, RayHost, first_line
from simulation.ray.host_work import HostSettings, Outcome
from simulation.ray.journal import Journal

DEATHS = 3  # of a host in one exchange, until its messages are answered with errors

logger = logging.getLogger(__name__)


class RayFleet:
    """The hosts, the replies that have come and nobody has asked for, and the journal of private state.

    A host's replies come with the private state that they changed, and count together. So when a host dies, no reply
    that has come is lost, and the others are made again by the same clients in the same state.
    """

    def __init__(self, settings: HostSettings, pinning: Pinning, hosts: int, cpus: float, gpus: float) -> None:
        """Start ``hosts`` actors with ``cpus`` and ``gpus`` each, without waiting for them."""
        self.pinning = pinning
        self._cpus = cpus
        self._gpus = gpus
        self._journal = Journal()
        self._replies: dict[str, Message] = {}
        self._reply_numbers = itertools.count(1)
        self._notes: set[str] = set()
        self._loaded = False
        self.hosts: list[RayHost] = []
        for index in range(hosts):
            self.hosts.append(RayHost(index, settings, cpus, gpus))

    def close(self) -> None:
        """End the hosts."""
        for host in self.hosts:
            host.stop()
        self.hosts.clear()
        self._journal.begin([])

    def wait_until_loaded(self) -> None:
        """Wait until all hosts have imported the client app. Raises FedMoEError if one cannot."""
        if not self.hosts:
            raise FedMoEError("the simulation's grid has been closed: start a new run")
        if not self._loaded:
            for host in self.hosts:
                host.wait_until_loaded(self._fits)
            self._loaded = True

    # --- work ------------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether no host owes anything."""
        return all(host.idle for host in self.hosts)

    def borrow(self, client_ids: Sequence[int]) -> dict[int, bytes]:
        """Return the private state of some clients, for other hosts to execute them. The fleet must be idle."""
        wanted = self._by_home(client_ids)
        doing = "handing over clients' state"
        references = {index: self.hosts[index].states(ids) for index, ids in wanted.items()}
        found: dict[int, bytes] = {}
        for index, ids in wanted.items():
            host = self.hosts[index]
            states = self._result(host, references[index], partial(host.states, ids), doing)
            found.update(zip(ids, states, strict=True))
        return found

    def send_home(self, client_ids: Iterable[int]) -> None:
        """Begin to give the hosts that keep some clients these clients' state as of the replies that count."""
        for index, ids in self._by_home(client_ids).items():
            self.hosts[index].homecoming.append(self.hosts[index].adopt(self._journal.changed(ids)))

    def add(self, chunks: Mapping[int, Sequence[Chunk]]) -> None:
        """Have chunks executed, by host, in their order."""
        self._await_homecoming()
        for index, part in chunks.items():
            self.hosts[index].add(part)

    def pop_replies(self, numbers: Sequence[str]) -> list[Message]:
        """Hand out the replies to some messages that have come, in the order of the messages' ids."""
        return [self._replies.pop(number) for number in numbers if number in self._replies]

    def give_up(self, call: Call) -> None:
        """Do no more of a call, and drop what still comes of it."""
        call.wanted = False
        for host in self.hosts:
            host.give_up(call)

    def drain(self) -> None:
        """Wait until no host owes anything."""
        while not self.idle:
            self.collect(None)
        self._await_homecoming()

    def collect(self, timeout: float | None) -> bool:
        """Wait for the next chunk of any host and keep its replies; return False if none came in time."""
        # A host works in order, so the next chunk to be ready is the first one of some host.
        heads = {host.working[0].reference: host for host in self.hosts if host.working}
        if not heads:
            return False
        ready, _ = ray.wait(list(heads), num_returns=1, timeout=timeout)
        for reference in ready:
            host = heads[reference]
            try:
                outcome: Outcome = ray.get(reference)
            except RayTaskError as error:
                self._refuse(host, f"its host failed: {first_line(error.cause)}")
            except RayError as error:
                self._recover(host, first_line(error))
            else:
                self._accept(host, outcome)
        return bool(ready)

    def _accept(self, host: RayHost, outcome: Outcome) -> None:
        chunk = host.finish()
        call = chunk.call
        if call.reducer is None:
            self._journal.record(outcome.changed)
            if call.wanted:
                for request, reply in zip(chunk.requests, outcome.replies, strict=True):
                    if reply is not None:
                        self._replies[request.metadata.message_id] = self._numbered(reply)
        else:
            # The merged replies are in the host's memory until its last chunk: until then nothing counts.
            self._journal.stage(host.index, outcome.changed)
            if chunk.last:
                self._journal.commit(host.index)
                call.merged[host.index] = [self._numbered(reply) for reply in outcome.replies if reply is not None]
        for note in set(outcome.notes) - self._notes:
            self._notes.add(note)
            logger.warning("%s", note)

    def _await_homecoming(self) -> None:
        for host in self.hosts:
            try:
                for reference in host.homecoming:
                    host.result(reference, "taking its clients' state back")
                host.homecoming.clear()
            except HostDied as error:  # it gets everything from the journal
                self._recover(host, str(error))

    def _by_home(self, client_ids: Iterable[int]) -> dict[int, list[int]]:
        """Return host -> those of the clients that it keeps."""
        by_home: dict[int, list[int]] = {}
        for client_id in client_ids:
            by_home.setdefault(int(self.pinning[client_id]), []).append(client_id)
        return by_home

    def _numbered(self, reply: Message) -> Message:
        number_message(reply, f"r{next(self._reply_numbers)}")
        return reply

    # --- hosts that fail or die ------------------------------------------------------------------------------------

    def _refuse(self, host: RayHost, reason: str) -> None:
        """Answer the chunk that a host could not carry out with errors, and bring its clients' state back in order."""
        failed = host.working[0]
        again = []
        for chunk in host.unfinished():
            if chunk is failed or (chunk.call is failed.call and failed.call.reducer is not None):
                self._fail(host, chunk, CLIENT_RAISED, reason)
            elif chunk.call.wanted:
                again.append(chunk)
        self._journal.discard(host.index)
        try:
            self._give_states_back(host)
        except HostDied:
            self._start_again(host)
        host.add(again)

    def _recover(self, host: RayHost, reason: str) -> None:
        """Start a dead host again, give its clients their state back, and have it do again what is not done.

        Messages at which it dies time and again are answered with errors. Raises FedMoEError if it does not come up.
        """
        self._journal.discard(host.index)
        host.deaths += 1
        again = [chunk for chunk in host.unfinished() if chunk.call.wanted]
        if host.deaths >= DEATHS:
            for chunk in again:
                self._fail(
                    host, chunk, HOST_DIED, f"host {host.index} died before it replied, {DEATHS} times ({reason})"
                )
            again, host.deaths = [], 0
        restored = self._start_again(host)
        logger.warning(
            "host %d died and was started again with the state of %d clients; it does %d messages once more (%s)",
            host.index,
            restored,
            sum(len(chunk.requests) for chunk in again),
            reason,
        )
        host.add(again)

    def _result(self, host: RayHost, reference: Any, begin: Callable[[], Any], doing: str) -> Any:
        """Wait for what a host has begun and return it; if the host dies of it, have it begin once more."""
        try:
            return host.result(reference, doing)
        except HostDied as error:
            self._recover(host, str(error))
            return host.result(begin(), doing)

    def _start_again(self, host: RayHost) -> int:
        for attempt in itertools.count(1):
            host.stop()
            host.start(crowded=not self._fits())
            try:
                host.wait_until_loaded(self._fits)
                return self._give_states_back(host)
            except HostDied:
                if attempt == DEATHS:
                    raise
        raise AssertionError

    def _give_states_back(self, host: RayHost) -> int:
        return host.replace(self._journal.states(lambda client_id: bool(self.pinning[client_id] == host.index)))

    def _fits(self) -> bool:
        return host_capacity(self._cpus, self._gpus) >= len(self.hosts)

    def _fail(self, host: RayHost, chunk: Chunk, code: int, reason: str) -> None:
        chunk.done, chunk.reference = True, None
        if not chunk.call.wanted:
            return
        for request, client_id in zip(chunk.requests, chunk.client_ids, strict=True):
            who = f"client {client_id}: {request.metadata.message_type}"
            reply = self._numbered(error_reply(request, code, f"{who}: {reason}"))
            if chunk.call.reducer is None:
                self._replies[request.metadata.message_id] = reply
            else:
                chunk.call.merged.setdefault(host.index, []).append(reply)

    # --- private state ---------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> dict[str, int]:
        """Write the private state of all clients into files of ``folder``; return name -> number of clients in it.

        They are the journal's new beginning.
        """
        self.wait_until_loaded()
        self.drain()
        paths = [folder / f"clients-{host.index:05d}.bin" for host in self.hosts]
        doing = f"saving clients' state in {folder}"
        references = [host.save(str(path)) for host, path in zip(self.hosts, paths, strict=True)]
        counts: dict[str, int] = {}
        for host, path, reference in zip(self.hosts, paths, references, strict=True):
            counts[path.name] = self._result(host, reference, partial(host.save, str(path)), doing)
        self._journal.begin(paths)
        return counts

    def load(self, folder: Path, paths: Sequence[Path]) -> int:
        """Replace all clients' private state by that in files; return the number of clients."""
        self.wait_until_loaded()
        self.drain()
        sources, pinning = [str(path) for path in paths], ray.put(self.pinning)
        references = [host.restore(sources, pinning) for host in self.hosts]
        ray.wait(references, num_returns=len(references))  # or Ray complains of the errors that nobody asks for
        doing = f"loading clients' state from {folder}"
        count: int = sum(
            self._result(host, reference, partial(host.restore, sources, pinning), doing)
            for host, reference in zip(self.hosts, references, strict=True)
        )
        self._journal.begin(paths)
        return count
