"""Who gets what: the ids of nodes and clients, the cutting of a host's messages into chunks, what messages share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from simulation.flower_runtime import Record

FIRST_NODE_ID = 2  # Flower's node 0 is nobody, node 1 the server
CHUNK_MESSAGES = 32  # at most, where replies travel: more would delay the first ones
CHUNK_BYTES = 64 << 20  # about, of replies: they pass through the object store in one piece
MERGED_MESSAGES = 64  # at most, where a host merges the replies: a chunk is then its sign of life
STACKED_MESSAGES = 256  # at most, where clients are trained in stacks: enough to sort them by length


class _Ids(Mapping[int, int]):
    """The numbers of a range -> the same numbers, shifted; without a table of millions of entries."""

    def __init__(self, numbers: range, shift: int) -> None:
        self._numbers = numbers
        self._shift = shift

    def __getitem__(self, number: int) -> int:
        if number not in self._numbers:
            raise KeyError(number)
        return number + self._shift

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def values(self) -> ValuesView[int]:
        """Return the shifted numbers."""
        return _Values(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The keys as an array, at once: iterating over a million of them takes a while."""
        return np.arange(self._numbers.start, self._numbers.stop, dtype=dtype or np.int64)


class _Values(ValuesView[int]):
    def __init__(self, ids: _Ids) -> None:
        super().__init__(ids)
        self._shifted = range(ids._numbers.start + ids._shift, ids._numbers.stop + ids._shift)

    def __iter__(self) -> Iterator[int]:
        return iter(self._shifted)  # looking each one up takes ten times as long


class ClientIds(_Ids):
    """Node id -> client id of all nodes."""

    def __init__(self, num_clients: int) -> None:
        super().__init__(range(FIRST_NODE_ID, FIRST_NODE_ID + num_clients), -FIRST_NODE_ID)
        self.clients = range(num_clients)  # all client ids, ascending

    def node_of(self, client_id: int) -> int:
        """Return the node id of a client: the inverse, which also needs no table."""
        return FIRST_NODE_ID + client_id

    def inverse(self) -> Mapping[int, int]:
        """Return client id -> node id."""
        return _Ids(range(len(self)), FIRST_NODE_ID)


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
