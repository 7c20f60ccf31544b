"""The journal: the last snapshot and what has changed since."""

from __future__ import annotations

import shutil
from pathlib import Path

from simulation.ray.client_files import write_clients
from simulation.ray.journal import Journal


def everyone(_: int) -> bool:
    return True


def test_changes_count_once_committed_and_a_snapshot_replaces_them(tmp_path: Path) -> None:
    journal = Journal()
    assert dict(journal.states(everyone)) == {}
    journal.record([(1, b"a"), (2, b"b")])
    journal.stage(0, [(1, b"c"), (3, b"d")])
    journal.stage(0, [(3, b"e")])
    journal.stage(1, [(2, b"f")])
    assert dict(journal.states(everyone)) == {1: b"a", 2: b"b"}
    journal.discard(1)
    journal.commit(0)
    journal.commit(1)
    assert dict(journal.states(everyone)) == {1: b"c", 2: b"b", 3: b"e"}
    assert dict(journal.states(lambda client: client == 3)) == {3: b"e"}

    write_clients(tmp_path / "file", [(1, b"x"), (2, b"y"), (4, b"z")])
    journal.stage(0, [(1, b"lost")])
    journal.begin([tmp_path / "file"])
    shutil.rmtree(tmp_path)  # an old checkpoint may be gone when its snapshot is needed
    journal.commit(0)
    journal.record([(1, b""), (2, b"w")])
    for _ in range(2):
        assert dict(journal.states(everyone)) == {2: b"w", 4: b"z"}, "client 1 keeps nothing any more"
    journal.begin([])
    assert dict(journal.states(everyone)) == {}
