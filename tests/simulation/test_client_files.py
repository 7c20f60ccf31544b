"""Files of clients' state: what is written is read, what is damaged is refused."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest

from fedmoe.errors import FedMoEError
from simulation.ray.client_files import read_clients, read_index, write_clients, write_index


def state(value: int) -> bytes:
    return bytes([value] * 3 * value)


def every(_: int) -> bool:
    return True


def test_round_trip_and_choice(tmp_path: Path) -> None:
    states = {5: state(5), 0: state(0), 2**40: state(1)}
    assert write_clients(tmp_path / "file", sorted(states.items())) == 3
    assert dict(read_clients(tmp_path / "file", every)) == states
    assert list(dict(read_clients(tmp_path / "file", every))) == [0, 5, 2**40]
    contents = (tmp_path / "file").read_bytes()
    assert dict(read_clients(BytesIO(contents), lambda client: client == 5)) == {5: state(5)}


def test_no_client(tmp_path: Path) -> None:
    assert write_clients(tmp_path / "file", []) == 0
    assert dict(read_clients(tmp_path / "file", every)) == {}


def test_every_cut_and_a_foreign_file_are_noticed(tmp_path: Path) -> None:
    write_clients(tmp_path / "file", [(1, state(3)), (2, state(1))])
    contents = (tmp_path / "file").read_bytes()
    for length in range(len(contents)):
        for wanted in (every, lambda client: client == 2):
            with pytest.raises(FedMoEError, match="cannot be read"):
                dict(read_clients(BytesIO(contents[:length]), wanted))
    with pytest.raises(FedMoEError, match="not a file of clients' state"):
        dict(read_clients(BytesIO(b"x" * 100), every))
    with pytest.raises(FedMoEError, match="1 clients where 2 were written|cut short|cannot be read"):
        dict(read_clients(BytesIO(contents[: -16 - len(contents) // 4] + contents[-16:]), every))
    missing = tmp_path / "missing"
    with pytest.raises(FedMoEError, match=str(missing)):
        dict(read_clients(missing, every))


def test_the_index(tmp_path: Path) -> None:
    write_clients(tmp_path / "a", [])
    write_index(tmp_path, 7, {"a": 0})
    assert read_index(tmp_path, 7) == [tmp_path / "a"]
    with pytest.raises(FedMoEError, match="holds the state of 7 clients, this run has 8"):
        read_index(tmp_path, 8)
    (tmp_path / "a").unlink()
    with pytest.raises(FedMoEError, match="a is missing"):
        read_index(tmp_path, 7)
    for text in ("{", "[]", json.dumps({"num_clients": 7}), json.dumps({"num_clients": 7, "files": 3})):
        (tmp_path / "clients.json").write_text(text)
        with pytest.raises(FedMoEError, match=r"clients\.json cannot be read"):
            read_index(tmp_path, 7)
