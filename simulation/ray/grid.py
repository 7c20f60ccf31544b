"""A Flower Grid whose clients live in a few Ray actors, the hosts.

Node id = client id + ``FIRST_NODE_ID``; client id = Flower's ``partition-id``. The host that keeps a client's private
state (``Context.state``) never changes during a run; in a round another one may execute the client as a guest. A record
that several messages carry - the round's model - is put in Ray's object store once and read once per host. Messages go
out in chunks, a few at a time; replies come back in chunks and are returned in the order of the requests, or merged
where the clients live.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import ray
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from numpy.typing import ArrayLike

from fedmoe.errors import FedMoEError
from simulation.client_call import RunConfig
from simulation.dispatch import FIRST_NODE_ID, ClientIds, batches, chunk_size, shared_records
from simulation.flower_runtime import Run, begin_run, number_message
from simulation.pinning import costs_of, pin_clients
from simulation.ray.client_files import read_index, write_index
from simulation.ray.cluster import number_of_hosts, start_ray
from simulation.ray.fleet import RayFleet
from simulation.ray.host import Call, Chunk, pickled_app
from simulation.ray.host_work import HostSettings
from simulation.reduction import Reducer


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
        loads: ArrayLike | None = None,
        stacked: str | None = None,
        state_memory: int = 512 << 20,
    ) -> None:
        """Start Ray, unless it runs already, and the hosts; they import the client app in the background.

        Args:
            client_app: ``"module:attribute"``, or an object that can be pickled.
            num_clients: clients 0, 1, 2 ...
            run_config: in every client's context.
            hosts: number of actors, 0: as many as fit, at ``client_cpus`` and ``client_gpus`` each.
            ray_address: a cluster to join instead of starting Ray here; the hosts are spread over its machines.
            loads: what a call of each client costs, ``[num_clients]``; hosts get clients of the same total cost.
                None: client id modulo hosts. Replies are the same whatever the loads.
            stacked: ``"module:attribute"`` of a function that executes many train messages at once, see
                ``host_work.Stacked``; None: one by one.
            state_memory: bytes of private state that each host keeps in memory; the rest is on its disk.

        Raises FedMoEError if the hosts do not fit, or the loads do not.
        """
        if num_clients < 1:
            raise FedMoEError(f"a simulation needs at least one client, not {num_clients}")
        self._client_ids = ClientIds(num_clients)
        self._stacked = stacked is not None
        self._run = begin_run()
        self._numbers = itertools.count(1)  # of messages
        self._keys = itertools.count(1)  # of calls and what their messages share
        self._fleet: RayFleet | None = None
        self._owns_ray = start_ray(ray_address)
        try:
            settings = HostSettings(
                app=client_app if isinstance(client_app, str) else pickled_app(client_app),
                num_clients=num_clients,
                run_id=self._run.run_id,
                run_config=dict(run_config),
                stacked=stacked,
                state_memory=state_memory,
            )
            count = number_of_hosts(hosts, num_clients, client_cpus, client_gpus)
            self._costs = costs_of(num_clients, loads)
            pinning = pin_clients(num_clients, count, loads)
            self._fleet = RayFleet(settings, pinning, count, client_cpus, client_gpus)
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
        self._send(requests, self._call(requests))
        return [request.metadata.message_id for request in requests]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return, once, the replies that have come to these messages, in the order of the ids; does not wait.

        Hosts get a few chunks at a time, and the next ones here: who pushes should pull now and then.
        """
        while self._hosts.collect(0.0):
            pass
        return self._hosts.pop_replies(list(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their replies in the order of the messages.

        After ``timeout`` seconds those that have come so far are returned and the others given up: messages whose
        turn has not come are not executed, the reply of a client at work is dropped (its private state advances).
        Without a timeout every message gets a reply, be it an error.
        """
        requests = list(messages)
        deadline = None if timeout is None else time.time() + timeout
        call = self._call(requests, deadline)
        self._wait(self._send(requests, call), deadline)
        if deadline is not None:
            self._hosts.give_up(call)
        return self._hosts.pop_replies([request.metadata.message_id for request in requests])

    # --- beyond Flower's Grid --------------------------------------------------------------------------------------

    def client_ids(self) -> Mapping[int, int]:
        """Return node id -> client id for every node."""
        return self._client_ids

    def send_and_reduce(self, messages: Iterable[Message], reducer: Callable[[], Reducer]) -> list[Message]:
        """Send messages and return what each host's reducer makes of its clients' replies, host by host.

        ``reducer`` makes the object that merges; it is pickled and called once on each host, which adds the replies in
        the order of the clients' ids. Waits for all; each client's reply is in a merged one, or an error. Where the
        cohort is uneven, a host with less to do executes some clients of another one.
        """
        requests = sorted(messages, key=lambda request: request.metadata.dst_node_id)
        call = self._call(requests, reducer=reducer)
        self._wait(self._send(requests, call), None)
        self._hosts.send_home(call.guests)
        return call.replies()

    def save_clients(self, folder: Path) -> int:
        """Write the private state of every client that has any into ``folder``; return the number of clients.

        A file per host and ``clients.json``. The grid keeps the files open: a host that dies later starts again
        from them and from what has changed since, wherever they have been moved meanwhile. On a cluster all machines
        must see the folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        counts = self._hosts.save(folder)
        write_index(folder, len(self._client_ids), counts)
        return sum(counts.values())

    def load_clients(self, folder: Path) -> int:
        """Replace all clients' private state by what ``save_clients`` wrote; return the number of clients.

        The number of hosts may be another one than when it was written. Raises FedMoEError for a missing or damaged
        file, or one of a federation of another size; the state is then undefined and the run should stop.
        """
        return self._hosts.load(folder, read_index(folder, len(self._client_ids)))

    def close(self) -> None:
        """End the hosts, and Ray if this grid has started it. May be called more than once."""
        if self._fleet is not None:
            self._fleet.close()
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

    @property
    def _hosts(self) -> RayFleet:
        assert self._fleet is not None
        return self._fleet

    def _call(
        self,
        requests: Sequence[Message],
        deadline: float | None = None,
        reducer: Callable[[], Reducer] | None = None,
    ) -> Call:
        """Number the requests and put what they share in the object store."""
        self._hosts.wait_until_loaded()
        for request in requests:
            node_id = request.metadata.dst_node_id
            if node_id not in self._client_ids:
                last = FIRST_NODE_ID + len(self._client_ids) - 1
                raise FedMoEError(f"a message is addressed to node {node_id}: the nodes are {FIRST_NODE_ID} to {last}")
            number_message(request, str(next(self._numbers)))
        keys: dict[int, int] = {}
        shared: dict[int, object] = {}
        for identity, record in shared_records([request.content for request in requests]).items():
            if isinstance(record, ArrayRecord):  # the others are small and travel inside the chunks
                keys[identity] = next(self._keys)
                shared[keys[identity]] = record
        key = None
        if reducer is not None:
            key = next(self._keys)
            shared[key] = reducer
        # In one piece: the reducer's arrays are those of the model, which are then written once.
        return Call(next(self._keys), ray.put(shared), list(shared), keys, deadline, key)

    def _send(self, requests: Sequence[Message], call: Call) -> list[Chunk]:
        """Cut the requests into chunks for their clients' hosts, and let these begin."""
        clients = [self._client_ids[request.metadata.dst_node_id] for request in requests]
        by_host: dict[int, list[Message]] = {}
        for request, host in zip(requests, self._hosts.pinning[clients].tolist(), strict=True):
            by_host.setdefault(host, []).append(request)
        chunks = {}
        for host, batch in sorted(by_host.items()):
            parts = batches(batch, self._chunk_size(batch, call))
            chunks[host] = [Chunk(call, p, [self._client_ids[r.metadata.dst_node_id] for r in p]) for p in parts]
            chunks[host][-1].last = True
        self._hosts.add(chunks)
        return [chunk for part in chunks.values() for chunk in part]

    def _chunk_size(self, batch: Sequence[Message], call: Call) -> int:
        if call.deadline is not None:
            return 1  # each reply counts as soon as it is there
        # Replies are about as large as the arrays that were sent.
        sent = batch[0].content.array_records.values()
        size = None if call.reducer is not None else sum(record.count_bytes() for record in sent)
        return chunk_size(len(batch), size, self._stacked and batch[0].metadata.message_type == "train")

    def _wait(self, chunks: Sequence[Chunk], deadline: float | None) -> None:
        """Wait until all chunks are done, or for the deadline."""
        waiting = list(chunks)
        while waiting:
            if waiting[-1].done:
                waiting.pop()
            elif not self._hosts.collect(None if deadline is None else max(0.0, deadline - time.time())):
                return
