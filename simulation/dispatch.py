"""Who gets what: the ids of nodes and clients, the cutting of a host's messages into chunks, what messages share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, ValuesView

from flwr.app import Message

from simulation.flower_runtime import Record

FIRST_NODE_ID = 2  # Flower's node 0 is nobody, node 1 the server
CHUNK_MESSAGES = 32  # at most, where replies travel: more would delay the first ones
CHUNK_BYTES = 64 << 20  # about, of replies: they pass through the object store in one piece
MERGED_MESSAGES = 64  # at most, where a host merges the replies: a chunk is then its sign of life
STACKED_MESSAGES = 256  # at most, where clients are trained in stacks: enough to sort them by length


class ClientIds(Mapping[int, int]):
    """Node id -> client id of all nodes, without a table of millions of entries."""

    def __init__(self, num_clients: int) -> None:
        self.clients = range(num_clients)  # all client ids, ascending
        self._nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + num_clients)

    def __getitem__(self, node_id: int) -> int:
        if node_id not in self._nodes:
            raise KeyError(node_id)
        return node_id - FIRST_NODE_ID

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def node_of(self, client_id: int) -> int:
        """Return the node id of a client: the inverse, which also needs no table."""
        return FIRST_NODE_ID + client_id

    def values(self) -> ValuesView[int]:
        """Return the client ids."""
        return _Values(self)


class _Values(ValuesView[int]):
    def __init__(self, ids: ClientIds) -> None:
        super().__init__(ids)
        self._clients = ids.clients

    def __iter__(self) -> Iterator[int]:
        return iter(self._clients)  # looking each one up takes ten times as long


def shared_records(contents: Sequence[Mapping[str, Record]]) -> dict[int, Record]:
    """Return the records, by ``id()``, that more than one of the contents holds."""
    once: dict[int, Record] = {}
    often: dict[int, Record] = {}
    for content in contents:
        for record in content.values():
            (often if id(record) in once else once)[id(record)] = record
    return often


def chunk_size(messages: int, reply_bytes: int | None, stacked: bool = False) -> int:
    """Return how many of a host's messages go into one chunk.

    ``reply_bytes``: of one reply, about; None: the host merges the replies. ``stacked``: clients are trained in stacks.
    Replies that travel one by one do so an eighth at a time, so that they are read while the host works on.
    """
    fit = messages if reply_bytes is None else max(1, CHUNK_BYTES // max(reply_bytes, 1))
    if stacked:
        return _even(messages, min(fit, STACKED_MESSAGES))
    if reply_bytes is None:
        return _even(messages, MERGED_MESSAGES)
    return min(-(-messages // 8), CHUNK_MESSAGES, fit)


def _even(messages: int, most: int) -> int:
    """The size of equal pieces, as few as there can be with at most ``most`` messages each."""
    return -(-messages // -(-messages // most))


def batches(requests: Sequence[Message], size: int) -> Iterator[Sequence[Message]]:
    """Cut requests into pieces of at most ``size``, in order."""
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
