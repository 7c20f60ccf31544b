"""Which client sits behind which node.

A client's identity is its client id (= user = Flower's ``partition-id``); a node id is only an address and may be
random. Engines that know the mapping offer it (``grid.client_ids()``); otherwise each node is asked once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from errors import FedMoEError


class ClientDirectory:
    """Maps node ids to client ids and remembers the answers of the nodes it has asked.

    Args:
        wait_seconds: how long to wait for a first node to connect before giving up.
        poll_seconds: pause between two looks while waiting.
        timeout: seconds to wait for the answers to one query; None: until every node has answered or failed.
        note: called with one line of text when there is something to tell the user.
    """

    def __init__(
        self,
        wait_seconds: float = 600.0,
        poll_seconds: float = 1.0,
        timeout: float | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.wait_seconds = wait_seconds
        self.poll_seconds = poll_seconds
        self.timeout = timeout
        self.note = note
        self._known: dict[int, int] = {}  # node id -> client id, in the order in which the nodes were met

    def client_ids(self, grid: Grid) -> Mapping[int, int]:
        """Return node id -> client id of the connected nodes, every client id once.

        Where several nodes claim the same client, the one met last wins: it is the restarted one.

        Raises:
            FedMoEError: no client could be reached within ``wait_seconds``.
        """
        offered = getattr(grid, "client_ids", None)
        if offered is not None:
            mapping: Mapping[int, int] = offered()
            return mapping
        deadline = time.monotonic() + self.wait_seconds
        told = False
        while True:
            nodes = list(grid.get_node_ids())
            problems = self._ask(grid, [node for node in nodes if node not in self._known])
            present = set(nodes)
            newest = {client: node for node, client in self._known.items() if node in present}
            if newest:
                return {node: client for client, node in newest.items()}
            if time.monotonic() >= deadline:
                raise FedMoEError(_nobody(nodes, problems, self.wait_seconds))
            if self.note is not None and not told:
                self.note("waiting for clients to connect")
                told = True
            time.sleep(self.poll_seconds)

    def _ask(self, grid: Grid, nodes: Sequence[int]) -> list[str]:
        """Ask new nodes for their client id, remember the answers, return what went wrong (one line a node)."""
        if not nodes:
            return []
        messages = [Message(content=RecordDict(), message_type=MessageType.QUERY, dst_node_id=node) for node in nodes]
        answers: dict[int, int] = {}
        problems: list[str] = []
        for reply in grid.send_and_receive(messages, timeout=self.timeout):
            node = reply.metadata.src_node_id
            client = _client_id(reply)
            if isinstance(client, int):
                answers[node] = client
            else:
                problems.append(f"node {node}: {client}")
        # Replies come in any order; nodes are remembered in the order of the grid so that runs are repeatable.
        self._known.update({node: answers[node] for node in nodes if node in answers})
        return problems


def _client_id(reply: Message) -> int | str:
    """Return the client id in an answer, or what is wrong with the answer."""
    if reply.has_error():
        return (reply.error.reason or f"error {reply.error.code}").strip().splitlines()[0]
    config = reply.content.config_records.get("config")
    value = config.get("client-id") if config is not None else None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return f"answered the query without a valid client-id (got {value!r})"


def _nobody(nodes: Sequence[int], problems: Sequence[str], waited: float) -> str:
    if not nodes:
        return f"no client connected within {waited:.0f} s: start the SuperNodes, or check the engine's settings"
    why = f"; first problem: {problems[0]}" if problems else ""
    return f"none of {len(nodes)} connected nodes told its client id within {waited:.0f} s{why}"
