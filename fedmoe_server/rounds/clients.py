"""Which client sits behind which node.

A client's identity is its client id (= user = Flower's ``partition-id``); a node id is only an address and may be
random. Each node is asked once which client it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from data.sampling import generator
from fedmoe.errors import FedMoEError
from fedmoe_server.rounds.exchange import exchange

LARGEST_COUNTED_ID = 2**24  # above it client ids are not the numbers 0, 1, 2 ... of a simulation


class Directory(Protocol):
    """Tells which client sits behind which node of a grid."""

    def client_ids(self, grid: Grid) -> Mapping[int, int]:
        """Return node id -> client id of the nodes that are connected."""

    def names(self, grid: Grid) -> Mapping[int, int]:
        """Return node id -> client id of every node met so far, to name those that fail."""

    def await_clients(self, grid: Grid) -> None:
        """Wait until there are enough clients to begin a round."""


@dataclass
class ClientDirectory:
    """Maps node ids to client ids and remembers the answers of the nodes it has asked.

    Attributes:
        wait_seconds: how long to wait for a first node to connect before giving up.
        poll_seconds: pause between two looks while waiting.
        retry_seconds: pause before a node that gave no valid answer is asked again.
        timeout: seconds to wait for the answers to one query; None: until every node has answered or failed.
        note: called with one line of text when there is something to tell the user.
        minimum: clients that ``await_clients`` waits for.
        admitted: returns node id -> client id of the nodes whose keys are registered; a node that claims to be another
            client is refused. None: every node is believed.
        announce: what a node is told with the query, see ``deployed.identity``.
    """

    wait_seconds: float = 600.0
    poll_seconds: float = 1.0
    retry_seconds: float = 30.0
    timeout: float | None = None
    note: Callable[[str], None] | None = None
    minimum: int = 1
    admitted: Callable[[], Mapping[int, int]] | None = None
    announce: dict[str, str | int] = field(default_factory=dict)
    _refused: dict[int, tuple[float, str]] = field(default_factory=dict)  # node id -> when it is asked again, and why
    _known: dict[int, int] = field(default_factory=dict)  # node id -> client id, in the order in which they were met

    def client_ids(self, grid: Grid) -> Mapping[int, int]:
        """Return node id -> client id of the connected nodes, every client id once.

        Where several nodes claim the same client, the one met last wins: it is the restarted one.

        Raises:
            FedMoEError: no client could be reached within ``wait_seconds``.
        """
        return self._at_least(1, grid)

    def names(self, grid: Grid) -> Mapping[int, int]:
        """Return node id -> client id of every node met so far, connected or not: to name those that fail."""
        return self._known

    def await_clients(self, grid: Grid) -> None:
        """Wait until ``minimum`` clients are connected.

        Raises:
            FedMoEError: there are fewer after ``wait_seconds``.
        """
        self._at_least(self.minimum, grid)

    def _at_least(self, minimum: int, grid: Grid) -> dict[int, int]:
        """Return node id -> client id of the connected nodes as soon as there are ``minimum`` clients."""
        deadline = time.monotonic() + self.wait_seconds
        told = -1
        while True:
            nodes = list(grid.get_node_ids())
            found = self._present(grid, nodes)
            if len(found) >= minimum:
                return found
            if time.monotonic() >= deadline:
                raise FedMoEError(self._missing(minimum, len(found), nodes))
            if len(found) != told:
                some = f"{len(found)} of {minimum} clients are connected: waiting for more"
                self._tell(some if found else "waiting for clients to connect")
                told = len(found)
            time.sleep(self.poll_seconds)

    def _missing(self, minimum: int, found: int, nodes: Sequence[int]) -> str:
        """Say how many clients are missing after the wait, and the first reason that is known."""
        problems = [f"node {node}: {self._refused[node][1]}" for node in nodes if node in self._refused]
        why = f"; first problem: {problems[0]}" if problems else ""
        waited = f"{self.wait_seconds:.0f} s"
        if found:
            return (
                f"only {found} clients are connected after {waited}, deployment.min_clients asks for {minimum}: "
                f"start more of them, or lower it{why}"
            )
        if nodes:
            return f"none of {len(nodes)} connected nodes told its client id within {waited}{why}"
        return f"no client connected within {waited}: start the SuperNodes, or check the engine's settings"

    def _present(self, grid: Grid, nodes: Sequence[int]) -> dict[int, int]:
        """Return node id -> client id of connected nodes, after asking those that are not known yet."""
        now = time.monotonic()
        unknown = [node for node in nodes if node not in self._known and self._refused.get(node, (0.0, ""))[0] <= now]
        self._ask(grid, unknown)
        present = set(nodes)
        newest = {client: node for node, client in self._known.items() if node in present}
        return {node: client for client, node in newest.items()}

    def _tell(self, text: str) -> None:
        if self.note is not None:
            self.note(text)

    def _ask(self, grid: Grid, nodes: Sequence[int]) -> None:
        """Ask nodes for their client ids; remember the answers, and why a node gave none that can be used."""
        if not nodes:
            return
        content = RecordDict({"config": ConfigRecord(dict(self.announce))}) if self.announce else RecordDict()
        messages = [Message(content=content, message_type=MessageType.QUERY, dst_node_id=node) for node in nodes]
        asked = exchange(grid, messages, "query", lambda: {}, self.timeout)
        answers = {reply.metadata.src_node_id: _client_id(reply) for reply in asked.replies if reply.has_content()}
        answers |= {failure.node: failure.reason for failure in asked.failures}
        registered = None if self.admitted is None else self.admitted()
        # Replies come in any order; nodes are remembered in the order of the grid so that runs are repeatable.
        for node in nodes:
            answer = answers[node]
            if isinstance(answer, int) and registered is not None and registered.get(node) != answer:
                answer = f"claims to be client {answer}, but was admitted as client {registered.get(node)}"
            if isinstance(answer, int):
                self._known[node] = answer
                self._refused.pop(node, None)
            else:
                self._refuse(node, answer)

    def _refuse(self, node: int, reason: str) -> None:
        """Leave a node out for a while; tell the reason once."""
        if self._refused.get(node, (0.0, ""))[1] != reason:
            client = None if self.admitted is None else self.admitted().get(node)
            who = f"node {node}" if client is None else f"client {client}"
            self._tell(f"{who} is left out: {reason}")
        self._refused[node] = (time.monotonic() + self.retry_seconds, reason)


def _client_id(reply: Message) -> int | str:
    """Return the client id in an answer, or what is wrong with the answer."""
    config = reply.content.config_records.get("config")
    value = config.get("client-id") if config is not None else None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return f"answered the query without a valid client-id (got {value!r})"


def fixed_sample(seed: int, client_ids: Iterable[int], size: int) -> list[int] | None:
    """Return ``size`` of the clients, ascending and always the same for the seed; None: all, as for size 0.

    Every client id has a fixed random key and the smallest keys win, so a client that joins or leaves changes the
    sample by at most itself.
    """
    known = np.sort(np.fromiter(client_ids, dtype=np.int64))
    if size == 0 or size >= len(known):
        return None
    purpose = "evaluation-clients"
    if int(known[-1]) < LARGEST_COUNTED_ID:
        keys = generator(seed, purpose).random(int(known[-1]) + 1)[known]
    else:  # real clients draw their ids from far more numbers than fit into a table
        keys = np.array([generator(seed, purpose, int(client)).random() for client in known])
    return [int(client) for client in np.sort(known[np.argsort(keys, kind="stable")[:size]])]
