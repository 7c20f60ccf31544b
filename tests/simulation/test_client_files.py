"""Files of clients' state: what is written is read, what is damaged is refused."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from fedmoe.errors import FedMoEError
from simulation.ray.client_files import open_clients, read_clients, write_clients

CLIENTS = 2**41


def state(value: int) -> bytes:
    return bytes([value] * 3 * value)


def written(path: Path, states: dict[int, bytes]) -> bytes:
    assert write_clients(path, CLIENTS, sorted(states.items())) == len(states)
    return path.read_bytes()


def test_round_trip_and_choice(tmp_path: Path) -> None:
    states = {5: state(5), 0: state(0), 2**40: state(1)}
    contents = written(tmp_path / "file", states)
    with open_clients(tmp_path / "file") as file:
        for _ in range(2):
            assert list(read_clients(file, CLIENTS)) == sorted(states.items())
    assert dict(read_clients(BytesIO(contents), CLIENTS, lambda client: client == 5)) == {5: state(5)}


def test_no_client(tmp_path: Path) -> None:
    assert dict(read_clients(BytesIO(written(tmp_path / "file", {})), CLIENTS)) == {}


def test_every_cut_and_a_foreign_file_are_noticed(tmp_path: Path) -> None:
    contents = written(tmp_path / "file", {1: state(3), 2: state(1)})
    for length in range(len(contents)):
        for wanted in ({1, 2}, {2}):
            with pytest.raises(FedMoEError, match="cannot be read"):
                dict(read_clients(BytesIO(contents[:length]), CLIENTS, wanted.__contains__))
    with pytest.raises(FedMoEError, match="not a file of clients' state"):
        dict(read_clients(BytesIO(b"x" * 100), CLIENTS))
    with pytest.raises(FedMoEError, match="1 clients where 2 were written"):
        dict(read_clients(BytesIO(contents[: -32 - 1 * 3] + contents[-16:]), CLIENTS))
    missing = tmp_path / "missing"
    with pytest.raises(FedMoEError, match=str(missing)):
        open_clients(missing)


def test_the_state_of_another_federation_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "file", {})
    with (
        open_clients(tmp_path / "file") as file,
        pytest.raises(FedMoEError, match=f"file holds the state of {CLIENTS} clients, this run has 8"),
    ):
        dict(read_clients(file, 8))
