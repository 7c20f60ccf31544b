"""Clients' private state by client id: in memory up to a limit, the rest in a file that has no name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from fedmoe.errors import FedMoEError

LEAST_GARBAGE = 64 << 20  # bytes of the file that may be out of date before it is written anew


class StateTable:
    """Client id -> serialised state.

    States beyond ``memory`` bytes go to a temporary file, those first that were written longest ago. The file holds
    at most twice what is needed, and a bit; it is unlinked from the start, so a process that is killed leaves none.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._file: BinaryIO | None = None
        self.clear()

    def __len__(self) -> int:
        return len(self._kept) + len(self._spilled)

    def __contains__(self, client_id: int) -> bool:
        return client_id in self._kept or client_id in self._spilled

    @property
    def spilled(self) -> int:
        """Number of clients whose state is in the file."""
        return len(self._spilled)

    def get(self, client_id: int) -> bytes | None:
        """Return a client's state, None if there is none."""
        state = self._kept.get(client_id)
        if state is not None:
            return state
        place = self._spilled.get(client_id)
        return None if place is None else self._read(*place)

    def put(self, client_id: int, state: bytes) -> None:
        """Keep a state in place of the client's earlier one. Raises FedMoEError if the disk cannot take it."""
        self.drop(client_id)
        self._kept[client_id] = state
        self._kept_bytes += len(state)
        while self._kept_bytes > self._memory:
            self._spill()

    def drop(self, client_id: int) -> None:
        """Forget a client, if it is there."""
        state = self._kept.pop(client_id, None)
        if state is not None:
            self._kept_bytes -= len(state)
        elif (place := self._spilled.pop(client_id, None)) is not None:
            self._spilled_bytes -= place[1]

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield (client id, state) in the order of the ids."""
        for client_id in sorted([*self._kept, *self._spilled]):
            state = self.get(client_id)
            assert state is not None
            yield client_id, state

    def clear(self) -> None:
        """Forget all clients and give the disk space back."""
        if self._file is not None:
            self._file.close()
        self._kept: dict[int, bytes] = {}  # in the order in which they were written
        self._kept_bytes = 0
        self._spilled: dict[int, tuple[int, int]] = {}  # client id -> (offset, length) in the file
        self._spilled_bytes = 0
        self._file = None
        self._file_bytes = 0

    def _spill(self) -> None:
        """Move the state that was written longest ago to the file."""
        client_id = next(iter(self._kept))
        state = self._kept.pop(client_id)
        self._kept_bytes -= len(state)
        self._write(client_id, state)
        if self._file_bytes - self._spilled_bytes > max(LEAST_GARBAGE, self._spilled_bytes):
            self._compact()

    def _compact(self) -> None:
        """Write the file anew, without what is out of date."""
        old, places = self._file, self._spilled
        self._file, self._spilled, self._file_bytes, self._spilled_bytes = None, {}, 0, 0
        assert old is not None
        with old:
            for client_id, (offset, length) in sorted(places.items(), key=lambda item: item[1]):
                old.seek(offset)
                self._write(client_id, old.read(length))

    def _write(self, client_id: int, state: bytes) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="fedmoe-clients-")  # noqa: SIM115
            self._file.seek(self._file_bytes)
            self._file.write(state)
        except OSError as error:
            raise FedMoEError(
                f"clients' state does not fit into {tempfile.gettempdir()} ({error}): free space there, or point "
                "TMPDIR to another disk"
            ) from error
        self._spilled[client_id] = (self._file_bytes, len(state))
        self._file_bytes += len(state)
        self._spilled_bytes += len(state)

    def _read(self, offset: int, length: int) -> bytes:
        assert self._file is not None
        self._file.seek(offset)
        return self._file.read(length)
