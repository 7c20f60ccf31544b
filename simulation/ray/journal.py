"""What the driver needs to give a host that died its clients' private state back: the last snapshot, and the changes.

Hosts hand every changed state over with the replies of the messages that changed it, so a state and its replies get
lost together or not at all. The changes lie in a file; a new snapshot empties it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from simulation.ray.client_files import read_clients
from simulation.ray.state_table import StateTable

STAGED_MEMORY = 32 << 20  # bytes a host
Changes = Iterable[tuple[int, bytes]]  # (client id, serialised state; empty: the client keeps nothing any more)


class Journal:
    """The private state of all clients as of the last replies that count."""

    def __init__(self) -> None:
        self._changed = StateTable(memory=0)
        self._staged: dict[int, StateTable] = {}  # by host: changes whose replies do not count yet
        self._snapshot: list[BinaryIO] = []

    def record(self, changes: Changes) -> None:
        """Keep changes for good."""
        for client_id, state in changes:
            self._changed.put(client_id, state)

    def stage(self, host: int, changes: Changes) -> None:
        """Keep a host's changes that count only after ``commit``."""
        table = self._staged.setdefault(host, StateTable(STAGED_MEMORY))
        for client_id, state in changes:
            table.put(client_id, state)

    def commit(self, host: int) -> None:
        """From now on the host's staged changes count."""
        staged = self._staged.pop(host, None)
        if staged is not None:
            self.record(staged.items())
            staged.clear()

    def changed(self, client_ids: Iterable[int]) -> list[tuple[int, bytes]]:
        """Return (client id, state) of those of these clients whose state has changed since the last snapshot."""
        found = ((client_id, self._changed.get(client_id)) for client_id in client_ids)
        return [(client_id, state) for client_id, state in found if state is not None]

    def discard(self, host: int) -> None:
        """Forget the host's staged changes."""
        staged = self._staged.pop(host, None)
        if staged is not None:
            staged.clear()

    def begin(self, snapshot: Sequence[Path]) -> None:
        """Start again from files that hold all clients' state; none: nobody has any.

        The files stay open, so the caller may rename their folder, or delete it once there is a newer one.
        """
        for file in self._snapshot:
            file.close()
        self._snapshot = [path.open("rb") for path in snapshot]
        self._changed.clear()
        for host in list(self._staged):
            self.discard(host)

    def states(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, bytes]]:
        """Yield (client id, state) of the wanted clients that keep something."""
        for file in self._snapshot:
            file.seek(0)
            yield from read_clients(file, lambda client_id: wanted(client_id) and client_id not in self._changed)
        for client_id, state in self._changed.items():
            if state and wanted(client_id):
                yield client_id, state
