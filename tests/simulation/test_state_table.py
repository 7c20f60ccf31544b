"""The table of private state: a dictionary, some of it on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.errors import FedMoEError
from simulation.ray import state_table
from simulation.ray.state_table import StateTable

STEPS = st.lists(st.tuples(st.integers(0, 5), st.none() | st.binary(max_size=9)), max_size=40)


@given(STEPS, st.integers(0, 20), st.integers(0, 30))
def test_it_is_a_dictionary(steps: list[tuple[int, bytes | None]], memory: int, garbage: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_table, "LEAST_GARBAGE", garbage)
        table, model = StateTable(memory), {}
        for client, state in steps:
            if state is None:
                table.drop(client)
                model.pop(client, None)
            else:
                table.put(client, state)
                model[client] = state
            assert list(table.items()) == sorted(model.items())
            assert len(table) == len(model) and (client in table) == (client in model)
            assert table.get(client) == model.get(client)
        table.clear()
        assert len(table) == 0 and list(table.items()) == []


def test_the_oldest_are_spilled_and_the_file_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_table, "LEAST_GARBAGE", 100)
    table = StateTable(25)
    for client in range(4):
        table.put(client, bytes([client] * 10))
    assert table.spilled == 2 and table.get(0) == bytes(10)
    for _ in range(100):
        for client in range(4):
            table.put(client, bytes([client] * 10))
    assert table._file_bytes <= 20 + 100 + 10
    assert dict(table.items()) == {client: bytes([client] * 10) for client in range(4)}


def test_no_file_without_need_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    table = StateTable(10)
    table.put(1, b"0123456789")
    with pytest.raises(FedMoEError, match="does not fit into .*missing"):
        table.put(2, b"0")
