"""What a client keeps: atomic, checksummed, readable by its owner alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from fedmoe.errors import FedMoEError
from fedmoe_client.store.folder import State, StateFolder
from fedmoe_client.store.private import InFolder, kept_memory, latest_private, private_name


@pytest.fixture
def store(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def value(number: float) -> dict[str, np.ndarray]:
    return {"gate.value": np.array(number, np.float32), "router.bias": np.full(3, number, np.float32)}


def parameters(store: StateFolder, number: int, run: str = "a", training: bool = True) -> InFolder:
    return InFolder(store, "v", run, number, training, keep_rounds=4)


def current(store: StateFolder, number: int, run: str = "a", training: bool = True) -> float | None:
    found = parameters(store, number, run, training).load()
    return float(found["gate.value"]) if found else None


def test_what_is_saved_is_loaded_by_its_owner_alone(store: StateFolder) -> None:
    store.save("x", State(value(2.5), {"note": [1, "a"]}))
    found = store.load("x")
    assert found is not None
    assert list(found.arrays) == ["gate.value", "router.bias"]
    assert found.arrays["gate.value"].shape == ()
    assert found.arrays["gate.value"] == 2.5
    assert found.about == {"note": [1, "a"]}
    assert stat.S_IMODE((store.folder / "x.state").stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert store.load("y") is None


def test_nothing_is_kept_of_a_training_whose_reply_cannot_be_sent(store: StateFolder) -> None:
    parameters(store, 1).save(value(1.0))
    unwanted = InFolder(store, "v", "a", 2, True, keep_rounds=4, wanted=lambda: False)
    with pytest.raises(FedMoEError, match="the node ended"):
        unwanted.save(value(2.0))
    assert current(store, 3) == 1.0


def test_a_file_of_another_version_says_what_to_do(store: StateFolder) -> None:
    store.save("x", State(value(1.0), {}))
    path = store.folder / "x.state"
    path.write_bytes(path.read_bytes().replace(b"fedmoe-state 1 ", b"fedmoe-state 2 ", 1))
    with pytest.raises(FedMoEError, match=r"another version of FedMoE \(form 2, this one reads 1\): go back"):
        store.load("x")


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_a_damaged_file_is_named(store: StateFolder, damage: str) -> None:
    store.save("x", State(value(1.0), {}))
    path = store.folder / "x.state"
    content = path.read_bytes()
    flipped = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    path.write_bytes({"cut": content[:-5], "flip": flipped, "other": b"something else"}[damage])
    with pytest.raises(FedMoEError, match="x.state is damaged"):
        store.load("x")


def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(
    store: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("x", State(value(1.0), {}))

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(FedMoEError, match="No space left"):
        store.save("x", State(value(2.0), {}))
    found = store.load("x")
    assert found is not None
    assert found.arrays["gate.value"] == 1.0
    assert [path.name for path in store.folder.iterdir()] == ["x.state"]


def test_a_clients_number_is_drawn_once_and_no_other_is_accepted(store: StateFolder, tmp_path: Path) -> None:
    number = store.number(None)
    assert 0 <= number < 2**62
    assert store.number(None) == number
    with pytest.raises(FedMoEError, match=f"belongs to client {number}, this node is client 5"):
        store.number(5)
    assert StateFolder(tmp_path / "other").number(5) == 5


def test_the_lock_keeps_others_out(store: StateFolder) -> None:
    with store.lock(), pytest.raises(FedMoEError, match="in use"), store.lock(seconds=0.05):
        pass
    with store.lock(seconds=0.05):
        pass


def test_a_message_that_comes_twice_starts_from_the_same_value(store: StateFolder) -> None:
    assert current(store, 1) is None
    parameters(store, 1).save(value(1.0))
    assert current(store, 2) == 1.0
    parameters(store, 2).save(value(2.0))
    assert current(store, 2) == 1.0
    parameters(store, 2).save(value(2.5))
    assert current(store, 3) == 2.5
    assert current(store, 1, training=False) == 2.5  # an evaluation of the best round uses what there is now


def test_a_resumed_run_goes_back_and_a_new_run_goes_on(store: StateFolder) -> None:
    for number in range(1, 7):
        parameters(store, number).save(value(number))
    parameters(store, 4, training=False).go_back(4)
    assert current(store, 9, training=False) == 4.0
    assert current(store, 1, run="b") == 4.0
    parameters(store, 1, run="b").save(value(10.0))
    parameters(store, 0, run="b").go_back(0)
    assert current(store, 1, run="b") == 4.0


@pytest.mark.parametrize("last", [4, 6])
def test_a_run_in_between_costs_the_one_that_is_resumed_nothing(store: StateFolder, last: int) -> None:
    for number in range(1, 7):
        parameters(store, number).save(value(number))
    for number in (1, 2):
        parameters(store, number, run="b").save(value(10.0 + number))
    parameters(store, last, training=False).go_back(last)
    assert current(store, last + 1) == last
    assert current(store, last, training=False) == last, "an evaluation, too, is of the run's own"
    parameters(store, last + 1).save(value(20.0))
    assert current(store, last + 2) == 20.0
    assert current(store, 3, run="b") == 12.0
    for number in range(4):
        parameters(store, 1, run=f"c{number}").save(value(30.0))
    assert current(store, 1, run="d") == 30.0, "a new run begins with the newest value"
    assert current(store, last + 2) == 30.0, "and of runs long past nothing is kept"


def test_rounds_long_past_are_forgotten(store: StateFolder) -> None:
    for number in range(1, 30):
        parameters(store, number).save(value(number))
    state = store.load(private_name("v"))
    assert state is not None
    assert [entry["round"] for entry in state.about["entries"]] == [25, 26, 27, 28, 29]
    assert float(latest_private(state)["gate.value"]) == 29.0


def test_old_values_never_fill_the_disk(store: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmoe_client.store.private.OLDER_BYTES", 20)  # one value has 16
    for number in range(1, 5):
        parameters(store, number).save(value(number))
    state = store.load(private_name("v"))
    assert state is not None
    assert [entry["round"] for entry in state.about["entries"]] == [3, 4]


def test_memory_stays_when_a_run_goes_back(store: StateFolder) -> None:
    for number in (1, 2):
        saved = parameters(store, number)
        saved.memory = {"ann": np.array([4, 5], np.int32)}
        saved.save(value(number))
    parameters(store, 1).go_back(1)
    assert kept_memory(store.load(private_name("v")))["ann"].tolist() == [4, 5]


def test_erasing_leaves_nothing_but_the_lock(store: StateFolder) -> None:
    store.number(None)
    store.save("x", State(value(1.0), {}))
    with store.lock():
        assert store.erase() == ["client.json", "x.state"]
    assert [path.name for path in store.folder.iterdir()] == ["lock"]
