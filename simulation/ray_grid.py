"""A Flower Grid whose clients live in a few Ray actors, the hosts.

Node id = client id + ``FIRST_NODE_ID``; client id = Flower's ``partition-id``; a client's host is its id modulo the
number of hosts and never changes, because the host keeps the client's private state (``Context.state``). A record
that several messages carry - the round's model - is put in Ray's object store once and read once per host. Messages
go out in chunks, replies come back in chunks and are returned in the order of the requests.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import ray
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from ray.exceptions import RayError, RayTaskError

from errors import FedMoEError
from simulation.client_files import read_index, write_index
from simulation.client_host import Job, RunConfig
from simulation.dispatch import FIRST_NODE_ID, ClientIds, batches, chunk_size, shared_records
from simulation.flower_runtime import (
    CLIENT_RAISED,
    HOST_DIED,
    Run,
    begin_run,
    error_reply,
    number_message,
)
from simulation.ray_cluster import number_of_hosts, start_ray
from simulation.ray_host import Chunk, HostDied, HostSettings, RayHost, first_line, pickled_app

logger = logging.getLogger(__name__)


class RayGrid(Grid):
    """Executes ClientApps in resident Ray actors. Use it as a context manager, or call ``close``."""

    def __init__(
        self,
        client_app: str | ClientApp,
        num_clients: int,
        run_config: RunConfig,
        *,
        hosts: int = 0,
        client_cpus: float = 1.0,
        client_gpus: float = 0.0,
        ray_address: str | None = None,
    ) -> None:
        """Start Ray, unless it runs already, and the hosts; they import the client app in the background.

        ``client_app``: ``"module:attribute"``, or an object that can be pickled. ``run_config``: in every client's
        context. ``hosts``: number of actors, 0: as many as fit, at ``client_cpus`` and ``client_gpus`` each.
        ``ray_address``: a cluster to join instead of starting Ray here. Raises FedMoEError if the hosts do not fit.
        """
        if num_clients < 1:
            raise FedMoEError(f"a simulation needs at least one client, not {num_clients}")
        self._client_ids = ClientIds(num_clients)
        self._run = begin_run()
        self._numbers = itertools.count(1)
        self._record_keys = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._snapshot: list[BinaryIO] = []
        self._hosts: list[RayHost] = []
        self._loaded = False
        self._owns_ray = start_ray(ray_address)
        try:
            settings = HostSettings(
                app=client_app if isinstance(client_app, str) else pickled_app(client_app),
                num_clients=num_clients,
                run_id=self._run.run_id,
                run_config=dict(run_config),
                client_cpus=client_cpus,
                client_gpus=client_gpus,
            )
            count = number_of_hosts(hosts, num_clients, client_cpus, client_gpus)
            self._hosts.extend(RayHost(index, settings) for index in range(count))
        except BaseException:
            self.close()
            raise

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
        self._send(requests, None)
        return [request.metadata.message_id for request in requests]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return, once, the replies that have come to these messages, in the order of the ids; does not wait."""
        while self._collect(0.0):
            pass
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their replies in the order of the messages.

        After ``timeout`` seconds those that have come so far are returned and the others given up: messages whose
        turn has not come are not executed, the reply of a client at work is dropped (its private state advances).
        Without a timeout every message gets a reply, be it an error.
        """
        requests = list(messages)
        deadline = None if timeout is None else time.time() + timeout
        chunks = self._send(requests, deadline)
        waiting = list(chunks)
        while waiting:
            if waiting[-1].done:
                waiting.pop()
            elif not self._collect(None if deadline is None else max(0.0, deadline - time.time())):
                break
        for chunk in chunks:
            chunk.wanted = False
        numbers = [request.metadata.message_id for request in requests]
        return [self._replies.pop(number) for number in numbers if number in self._replies]

    # --- beyond Flower's Grid --------------------------------------------------------------------------------------

    def client_ids(self) -> Mapping[int, int]:
        """Return node id -> client id for every node."""
        return self._client_ids

    def save_clients(self, folder: Path) -> int:
        """Write the private state of every client that has any into ``folder``; return the number of clients.

        A file per host and ``clients.json``. The grid keeps the files open: a host that dies later starts again
        from them, wherever they have been moved meanwhile. On a cluster all machines must see the folder.
        """
        self._wait_until_loaded()
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"clients-{host.index:05d}.bin" for host in self._hosts]
        doing = f"saving clients' state in {folder}"
        references = [host.save(str(path)) for host, path in zip(self._hosts, paths, strict=True)]
        counts: dict[str, int] = {}
        for host, path, reference in zip(self._hosts, paths, references, strict=True):
            try:
                counts[path.name] = host.result(reference, doing)
            except HostDied as error:
                self._revive(host, str(error))
                counts[path.name] = host.result(host.save(str(path)), doing)
        write_index(folder, len(self._client_ids), counts)
        self._keep_snapshot(paths)
        return sum(counts.values())

    def load_clients(self, folder: Path) -> int:
        """Replace all clients' private state by what ``save_clients`` wrote; return the number of clients.

        The number of hosts may be another one than when it was written. Raises FedMoEError for a missing or damaged
        file, or one of a federation of another size; the state is then undefined and the run should stop.
        """
        paths = read_index(folder, len(self._client_ids))
        self._wait_until_loaded()
        sources = [str(path) for path in paths]
        references = [host.restore(sources, len(self._hosts)) for host in self._hosts]
        ray.wait(references, num_returns=len(references))  # or Ray complains of the errors that nobody asks for
        doing = f"loading clients' state from {folder}"
        count = sum(host.result(reference, doing) for host, reference in zip(self._hosts, references, strict=True))
        self._keep_snapshot(paths)
        return count

    def close(self) -> None:
        """End the hosts, and Ray if this grid has started it. May be called more than once."""
        for host in self._hosts:
            host.stop()
        self._hosts.clear()
        self._keep_snapshot([])
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- sending ---------------------------------------------------------------------------------------------------

    def _wait_until_loaded(self) -> None:
        if not self._hosts:
            raise FedMoEError("the simulation's grid has been closed: start a new run")
        if not self._loaded:
            for host in self._hosts:
                host.wait_until_loaded()
            self._loaded = True

    def _send(self, requests: Sequence[Message], deadline: float | None) -> list[Chunk]:
        self._wait_until_loaded()
        by_host: dict[int, list[Message]] = {}
        for request in requests:
            node_id = request.metadata.dst_node_id
            if node_id not in self._client_ids:
                last = FIRST_NODE_ID + len(self._client_ids) - 1
                raise FedMoEError(f"a message is addressed to node {node_id}: the nodes are {FIRST_NODE_ID} to {last}")
            by_host.setdefault(self._client_ids[node_id] % len(self._hosts), []).append(request)
            number_message(request, str(next(self._numbers)))

        keys: dict[int, int] = {}
        references = {}
        largest = 1
        for identity, record in shared_records([request.content for request in requests]).items():
            if isinstance(record, ArrayRecord):  # the others are small and travel inside the chunks
                keys[identity] = next(self._record_keys)
                references[keys[identity]] = ray.put(record)
                largest = max(largest, record.count_bytes())
        chunks = []
        for index, batch in sorted(by_host.items()):
            host = self._hosts[index]
            host.share(references)
            size = 1 if deadline is not None else chunk_size(len(batch), largest)
            for part in batches(batch, size):
                chunks.append(host.submit(part, [self._job(request, keys) for request in part], deadline))
            host.forget(list(references))
        return chunks

    def _job(self, request: Message, keys: Mapping[int, int]) -> Job:
        content = {name: keys.get(id(record), record) for name, record in request.content.items()}
        return Job(self._client_ids[request.metadata.dst_node_id], request.metadata, content)

    # --- receiving -------------------------------------------------------------------------------------------------

    def _collect(self, timeout: float | None) -> bool:
        """Wait for the next chunk of any host and keep its replies; return False if none came in time."""
        # A host works in order, so the next chunk to be ready is the first one of some host.
        heads = {host.queue[0].reference: host for host in self._hosts if host.queue}
        if not heads:
            return False
        ready, _ = ray.wait(list(heads), num_returns=1, timeout=timeout)
        for reference in ready:
            host = heads[reference]
            try:
                replies = ray.get(reference)
            except RayTaskError as error:
                self._fail(host.queue.popleft(), CLIENT_RAISED, f"its host failed: {first_line(error.cause)}")
            except RayError as error:
                self._revive(host, first_line(error))
            else:
                chunk = host.queue.popleft()
                chunk.done = True
                if chunk.wanted:
                    self._replies.update(
                        (request.metadata.message_id, self._numbered(reply))
                        for request, reply in zip(chunk.requests, replies, strict=True)
                        if reply is not None
                    )
        return bool(ready)

    def _numbered(self, reply: Message) -> Message:
        number_message(reply, str(next(self._numbers)))
        return reply

    def _fail(self, chunk: Chunk, code: int, reason: str) -> None:
        chunk.done = True
        if not chunk.wanted:
            return
        for request in chunk.requests:
            metadata = request.metadata
            client_id = self._client_ids[metadata.dst_node_id]
            reply = error_reply(request, code, f"client {client_id}: {metadata.message_type}: {reason}")
            self._replies[metadata.message_id] = self._numbered(reply)

    # --- hosts that die --------------------------------------------------------------------------------------------

    def _revive(self, host: RayHost, reason: str) -> None:
        """Answer what a dead host still owed with errors and start it again, from the last snapshot if there is one.

        Raises FedMoEError if it does not come up again.
        """
        chunks = list(host.queue)
        host.queue.clear()
        for chunk in chunks:
            self._fail(chunk, HOST_DIED, f"host {host.index} died before it replied ({reason})")
        host.stop()
        host.start()
        host.wait_until_loaded()
        contents: list[str | bytes] = []
        for file in self._snapshot:
            file.seek(0)
            contents.append(file.read())
        doing = "restoring its clients' state"
        restored = host.result(host.restore(contents, len(self._hosts)), doing) if contents else 0
        logger.warning(
            "host %d died and was started again; %d of its clients have their state of the last checkpoint (%s)",
            host.index,
            restored,
            reason,
        )

    def _keep_snapshot(self, paths: Sequence[Path]) -> None:
        # Open files survive that the caller renames the checkpoint's folder, and that it deletes an old checkpoint.
        for file in self._snapshot:
            file.close()
        self._snapshot = [path.open("rb") for path in paths]
