"""Who gets what: the ids of nodes and clients, the cutting of a host's messages into chunks, what messages share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Message

from simulation.flower_runtime import Record

FIRST_NODE_ID = 2  # Flower's node 0 is nobody, node 1 the server
CHUNK_MESSAGES = 32  # at most: more would delay the first replies
CHUNK_BYTES = 64 << 20  # about, of replies: they pass through the object store in one piece


class ClientIds(Mapping[int, int]):
    """Node id -> client id of all nodes, without a table of millions of entries."""

    def __init__(self, num_clients: int) -> None:
        self._nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + num_clients)
        self.clients = range(num_clients)  # all client ids, ascending

    def node_of(self, client_id: int) -> int:
        """Return the node id of a client: the inverse, which also needs no table."""
        return FIRST_NODE_ID + client_id

    def __getitem__(self, node_id: int) -> int:
        if node_id not in self._nodes:
            raise KeyError(node_id)
        return node_id - FIRST_NODE_ID

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def shared_records(contents: Sequence[Mapping[str, Record]]) -> dict[int, Record]:
    """Return the records, by ``id()``, that more than one of the contents holds."""
    once: dict[int, Record] = {}
    often: dict[int, Record] = {}
    for content in contents:
        for record in content.values():
            (often if id(record) in once else once)[id(record)] = record
    return often


def chunk_size(messages: int, content_bytes: int) -> int:
    """An eighth of a host's messages, so that replies are read while it works on; replies as large as the content."""
    return max(1, min(-(-messages // 8), CHUNK_MESSAGES, CHUNK_BYTES // content_bytes))


def batches(requests: Sequence[Message], size: int) -> Iterator[Sequence[Message]]:
    """Cut requests into pieces of at most ``size``, in order."""
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
