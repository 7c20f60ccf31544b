"""A Flower Grid whose clients live in a few Ray actors, the hosts: the driver's side of a round.

The host that keeps a client never changes during a run. A record that several messages carry - the round's model - is
put in Ray's object store once and read once per host. Messages go out in chunks, a few at a time; replies come back in
chunks and are returned in the order of the requests, or merged where the clients live.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import ray
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from numpy.typing import ArrayLike
from ray.exceptions import RayError

from fedmoe.settings import SimulationSettings
from fedmoe.wire import size_of
from simulation.client_apps import pickled
from simulation.flower_runtime import ClientIds, Run, RunConfig, begin_run, error_reply, number_message, unpacked_record
from simulation.ray.client_files import CLIENTS_FILE
from simulation.ray.fleet import Call, Chunk, Fleet, RemoteHost
from simulation.ray.host import chunk_size, split_shared
from simulation.ray.work import HostSettings, Job, Outcome, Reducer, Shared, Work

DEFAULTS = SimulationSettings()
IN_FLIGHT = 2  # chunks that an actor has at once: one it works on, and the next, so that it need not wait for it

logger = logging.getLogger(__name__)


class RayGrid(Grid):
    """Executes ClientApps in resident Ray actors. Use it as a context manager, or call ``close``."""

    def __init__(
        self,
        client_app: str | ClientApp,
        num_clients: int,
        run_config: RunConfig,
        resources: SimulationSettings = DEFAULTS,
        *,
        loads: ArrayLike | None = None,
        stacked: str | None = None,
    ) -> None:
        """Start Ray, unless it runs already, and the hosts; they import the client app in the background.

        Args:
            client_app: ``"module:attribute"``, or an object that can be pickled.
            num_clients: clients 0, 1, 2 ...
            run_config: in every client's context.
            resources: how many hosts, with what, on which cluster; ``engine`` is not looked at.
            loads: what a call of each client costs, ``[num_clients]``, see ``pin_clients``; replies do not change.
            stacked: ``"module:attribute"`` of a ``work.Stacked`` for train messages; None: they go one by one.

        Raises FedMoEError if the hosts do not fit, or the loads do not.
        """
        self._client_ids = ClientIds(num_clients)
        self._stacked = stacked is not None
        self._run = begin_run()
        self._numbers = itertools.count(1)  # of messages, calls and replies
        self._replies: dict[str, Message] = {}  # by the id of the message; nobody has asked for them yet
        self._notes: set[str] = set()
        self._loaded = False
        app = client_app if isinstance(client_app, str) else pickled(client_app)
        memory = resources.state_memory << 20
        settings = HostSettings(app, num_clients, self._run.run_id, dict(run_config), stacked, memory)
        self._fleet = Fleet(settings, resources, loads)

    # --- Flower's Grid ---------------------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Set the run information."""
        self._run = run

    @property
    def run(self) -> Run:
        """Run information."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message; the same as ``Message(content, dst_node_id, message_type, ...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, ascending."""
        return list(self._client_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages to their nodes and return their ids, in the same order, without waiting for replies.

        Raises FedMoEError for a node that does not exist, or when the client app cannot be loaded.
        """
        requests = list(messages)
        self._send(requests)
        return [request.metadata.message_id for request in requests]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return, once, what has come to these messages, in their order; hosts get their next chunks, so pull often."""
        while self._collect(0.0):
            pass
        return self._replies_to(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their replies in the order of the messages.

        After ``timeout`` seconds those that have come so far are returned and the others given up: messages whose
        turn has not come are not executed, the reply of a client at work is dropped (its private state advances).
        Without a timeout every message gets a reply, be it an error.
        """
        requests = list(messages)
        call = self._send(requests, None if timeout is None else time.monotonic() + timeout)
        self._wait(call)
        if call.left:
            self._give_up(call)
        return self._replies_to(request.metadata.message_id for request in requests)

    # --- beyond Flower's Grid --------------------------------------------------------------------------------------

    def client_ids(self) -> Mapping[int, int]:
        """Return node id -> client id for every node."""
        return self._client_ids

    to_record = staticmethod(unpacked_record)  # hosts get arrays as they are: nothing packs them

    def send_and_reduce(self, messages: Iterable[Message], reducer: Callable[[], Reducer]) -> list[Message]:
        """Send messages and return what each host's reducer makes of its clients' replies, host by host.

        ``reducer`` makes the object that merges; it is pickled and called once on each host, which adds the replies in
        the order of the clients' ids. Waits for all; each client's reply is in a merged one, or an error.
        """
        call = self._send(sorted(messages, key=lambda request: request.metadata.dst_node_id), reducer=reducer)
        self._wait(call)
        return [reply for _, replies in sorted(call.merged.items()) for reply in replies]

    def save_clients(self, folder: Path) -> int:
        """Write the private state of every client that has any into ``folder``; return the number of clients.

        The grid keeps the file open, wherever it is moved: a host that dies later starts again from it.
        """
        self._drain()
        folder.mkdir(parents=True, exist_ok=True)
        return self._fleet.save(folder / CLIENTS_FILE)

    def load_clients(self, folder: Path) -> int:
        """Replace all clients' private state by what ``save_clients`` wrote; return the number of clients.

        The number of hosts may be another one. Raises FedMoEError for a missing or damaged file, or one of a federation
        of another size; the state is then undefined and the run should stop.
        """
        self._drain()
        return self._fleet.load(folder / CLIENTS_FILE)

    def close(self) -> None:
        """End the hosts, and Ray if this grid has started it. May be called more than once."""
        self._loaded = False
        self._fleet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _send(
        self, requests: Sequence[Message], deadline: float | None = None, reducer: Callable[[], Reducer] | None = None
    ) -> Call:
        """Cut messages into chunks for their clients' hosts, and let these begin."""
        if not self._loaded:
            self._fleet.wait_until_loaded()
            self._loaded = True
        clients = [self._client_ids.client_of(request.metadata.dst_node_id) for request in requests]
        for request in requests:
            number_message(request, str(next(self._numbers)))
        shared, contents = split_shared([request.content for request in requests])
        # In one piece: the reducer's arrays are those of the model, which are then written once.
        call = Call(next(self._numbers), ray.put(Shared(shared, reducer)), contents, deadline, reducer is not None)
        by_host: dict[int, list[Message]] = {}
        for request, host in zip(requests, self._fleet.pinning[clients].tolist(), strict=True):
            by_host.setdefault(host, []).append(request)
        for host, batch in sorted(by_host.items()):
            # Replies are about as large as the arrays that were sent.
            sent = None if call.merges else sum(map(size_of, batch[0].content.array_records.values()))
            stacked = self._stacked and batch[0].metadata.message_type == "train"
            # Before a deadline each reply counts as soon as it is there.
            size = chunk_size(len(batch), sent, stacked) if deadline is None else 1
            for start in range(0, len(batch), size):
                chunk = Chunk(call, batch[start : start + size], last=start + size >= len(batch))
                self._fleet.hosts[host].chunks.append(chunk)
                call.left += 1
            self._go_on(self._fleet.hosts[host])
        return call

    def _go_on(self, host: RemoteHost) -> None:
        """Hand chunks to the actor, a few at a time: their replies take up memory until they are read."""
        for chunk in itertools.islice(host.chunks, IN_FLIGHT):
            call = chunk.call
            if call.deadline is not None and (chunk is not host.chunks[0] or time.monotonic() > call.deadline):
                return  # a message is not begun after the deadline, so it does not wait in the actor
            if chunk.reference is None:
                if call.key not in host.known:
                    host.known.add(call.key)
                    host.actor.receive.options(num_returns=0).remote(call.key, call.shared)
                jobs = [
                    Job(self._client_ids[m.metadata.dst_node_id], m.metadata, call.contents[id(m.content)])
                    for m in chunk.requests
                ]
                chunk.reference = host.actor.execute.remote(Work(call.key, jobs, chunk.last))

    def _wait(self, call: Call) -> None:
        """Wait until all chunks of a call are done, or for its deadline."""
        end = call.deadline
        while call.left and self._collect(None if end is None else max(0.0, end - time.monotonic())):
            pass

    def _collect(self, timeout: float | None) -> bool:
        """Wait for the next chunk of any host and keep its replies; return False if none came in time."""
        # A host works in order, so the next chunk to be ready is the first one of some host.
        heads = {host.chunks[0].reference: host for host in self._fleet.hosts if host.chunks}
        heads.pop(None, None)  # of a message that is not begun, because of its deadline
        if not heads:
            return False
        ready, _ = ray.wait(list(heads), num_returns=1, timeout=timeout)
        for reference in ready:
            host = heads[reference]
            try:
                outcome: Outcome = ray.get(reference)
            except RayError as error:
                lost, kind, reason = self._fleet.recover(host, error)
                for chunk in lost:
                    self._keep(host, chunk, [error_reply(request, kind, reason) for request in chunk.requests])
            else:
                self._accept(host, outcome)
            self._go_on(host)
        return bool(ready)

    def _accept(self, host: RemoteHost, outcome: Outcome) -> None:
        """Take what has come of a host's first chunk."""
        chunk = host.chunks.popleft()
        chunk.reference = None  # or the object store would keep the outcome until the call is over
        if chunk.call.merges:
            # The merged replies are in the host's memory until its last chunk: until then nothing counts.
            host.merged.append(chunk)
            host.staged.put(outcome.changed)
        else:
            self._fleet.changed.put(outcome.changed)
        self._keep(host, chunk, outcome.replies)
        if chunk.last:
            self._fleet.changed.put(host.staged.items())
            host.staged.clear()
            host.merged.clear()
            self._forget(host, chunk.call)
        if not host.chunks:
            host.deaths = 0
        for note in set(outcome.notes) - self._notes:
            self._notes.add(note)
            logger.warning("%s", note)

    def _keep(self, host: RemoteHost, chunk: Chunk, replies: Sequence[Message]) -> None:
        """Number the replies to a chunk and keep them for whoever waits for them."""
        call = chunk.call
        call.left -= 1
        for reply in replies if call.wanted else []:
            number_message(reply, f"r{next(self._numbers)}")
            if call.merges:
                call.merged.setdefault(host.index, []).append(reply)
            else:
                self._replies[reply.metadata.reply_to_message_id] = reply

    def _replies_to(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def _give_up(self, call: Call) -> None:
        """Do no more of a call, and drop what still comes of it."""
        call.wanted = False
        for host in self._fleet.hosts:
            host.chunks = deque(c for c in host.chunks if c.call is not call or c.reference is not None)
            self._forget(host, call)
            self._go_on(host)

    def _forget(self, host: RemoteHost, call: Call) -> None:
        if call.key in host.known:
            host.known.remove(call.key)
            host.actor.forget.options(num_returns=0).remote(call.key)

    def _drain(self) -> None:
        """Wait until no host owes anything."""
        self._fleet.wait_until_loaded()
        while self._collect(None):
            pass
