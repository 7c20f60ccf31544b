"""Checkpoints: a resumed run gives the same bits; what cannot be resumed is refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from safetensors import SafetensorError

from fedmoe.errors import FedMoEError
from fedmoe_server.rounds import checkpoints
from fedmoe_server.rounds.checkpoints import CheckpointStore, find_checkpoint, load_checkpoint
from fedmoe_server.rounds.record import LoopState, Result, RoundRecord

ADAM = {"strategy": "fedadam", "strategy_parameters": {"eta": 0.05}}
MOMENTUM = {"strategy": "fedavgm", "strategy_parameters": {"server_learning_rate": 0.5, "server_momentum": 0.9}}
AVERAGE = {"strategy": "fedavg", "strategy_parameters": {}, "server_schedule": "constant"}


def start(fakes: Any, grid: Any, folder: Path, **federation: Any) -> tuple[Result, LoopState]:
    state = LoopState(fakes.model_arrays())
    return fakes.make_loop(grid, folder, fakes.make_settings(**federation)).run(state), state


def resume(fakes: Any, grid: Any, path: Path, folder: Path, **federation: Any) -> tuple[Result, LoopState]:
    settings = fakes.make_settings(**federation)
    checkpoint = load_checkpoint(path, fakes.model_arrays())
    loop = fakes.make_loop(grid, folder, settings, checkpoint.state)
    state = checkpoint.restore(loop.strategy, grid, needs_clients=True)
    return loop.run(state), state


def numbers(history: list[RoundRecord]) -> list[RoundRecord]:
    return [replace(record, seconds=0.0, phases={}) for record in history]


@pytest.mark.parametrize("strategy", [ADAM, MOMENTUM, AVERAGE], ids=lambda s: s["strategy"])
@pytest.mark.parametrize("at", [2, 4])
def test_a_resumed_run_gives_the_same_bits(fakes: Any, tmp_path: Path, at: int, strategy: dict[str, Any]) -> None:
    first = fakes.SavingGrid()
    whole, end = start(fakes, first, tmp_path / "whole", **strategy, num_rounds=7, checkpoint_every=1)
    # A fresh process: another grid whose clients know nothing, stopped after round ``at``.
    path = tmp_path / "stopped"
    store = CheckpointStore(path / "checkpoints", keep=99)
    settings = fakes.make_settings(**strategy, num_rounds=7)
    interrupted = fakes.SavingGrid()
    loop = fakes.make_loop(interrupted, path, settings)
    state = LoopState(fakes.model_arrays())
    for _ in range(at):
        loop.one_round(state)
    saved = store.save(state, loop.strategy, interrupted)
    second = fakes.SavingGrid()
    resumed, state = resume(fakes, second, saved, path, **strategy, num_rounds=7)
    for name, array in end.chosen()[0].items():
        assert array.data == state.chosen()[0][name].data, name
    assert resumed.test == whole.test and resumed.validation == whole.validation
    assert resumed.best_round == whole.best_round
    assert numbers(state.history) == numbers(end.history)
    assert second.gates == first.gates


def test_early_stopping_counts_on_over_a_resume(fakes: Any, tmp_path: Path) -> None:
    federation = {"num_rounds": 9, "evaluate_every": 1, "patience": 3, "checkpoint_every": 3}
    scores = {1: 0.1, 2: 0.5, 3: 0.4, 4: 0.3, 5: 0.2, 6: 0.9}
    grids = [fakes.SavingGrid(), fakes.SavingGrid()]
    for grid in grids:
        grid.score = scores.__getitem__
    _, whole = start(fakes, grids[0], tmp_path, **federation)
    resumed, state = resume(fakes, grids[1], tmp_path / "checkpoints" / "round-000003", tmp_path, **federation)
    assert (resumed.rounds, resumed.best_round, resumed.stopped_early) == (5, 2, True)
    assert state.chosen()[0]["item"].data == whole.chosen()[0]["item"].data
    # Resuming what has stopped does not go on, but evaluates again.
    again, _ = resume(fakes, fakes.SavingGrid(), tmp_path / "checkpoints" / "round-000005", tmp_path, **federation)
    assert again.rounds == 5


def test_the_last_two_are_kept_and_found(fakes: Any, tmp_path: Path) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=5, checkpoint_every=1)
    folder = tmp_path / "checkpoints"
    assert sorted(os.listdir(folder)) == ["round-000004", "round-000005"]
    for path in (tmp_path, folder, folder / "round-000005"):
        assert find_checkpoint(path) == folder / "round-000005"
    with pytest.raises(FedMoEError, match="no checkpoint in"):
        find_checkpoint(tmp_path / "nothing")


def test_checkpoint_every_zero_writes_one_at_the_end(fakes: Any, tmp_path: Path) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=3, checkpoint_every=0)
    assert os.listdir(tmp_path / "checkpoints") == ["round-000003"]


def test_another_model_is_refused_with_both_shapes(fakes: Any, tmp_path: Path) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=2)
    path = find_checkpoint(tmp_path)
    shapes = {"item": (6, 3), "body": (3,), "gate": ()}
    with pytest.raises(FedMoEError, match=r"another model: parameter 'item' has shape \(5, 3\) of float32 there and "):
        load_checkpoint(path, fakes.model_arrays(shapes))
    with pytest.raises(FedMoEError, match=r"parameter 'extra' has no array there and shape \(2,\) of float32 here"):
        load_checkpoint(path, fakes.model_arrays({"item": (5, 3), "extra": (2,), "body": (3,), "gate": ()}))
    with pytest.raises(FedMoEError, match=r"parameter 'gate' has shape \(\) of float32 there and no array here"):
        load_checkpoint(path, fakes.model_arrays({"item": (5, 3), "body": (3,)}))
    with pytest.raises(FedMoEError, match="in another order"):
        load_checkpoint(path, fakes.model_arrays({"body": (3,), "item": (5, 3), "gate": ()}))


@pytest.mark.parametrize(
    "name",
    [
        "arrays.safetensors",
        "best.safetensors",
        "strategy.safetensors",
        "best-strategy.safetensors",
        "clients/gates.npz",
        "checkpoint.json",
    ],
)
def test_a_corrupt_file_is_named(fakes: Any, tmp_path: Path, name: str) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=2)
    file = find_checkpoint(tmp_path) / name
    content = bytearray(file.read_bytes())
    position = content.index(b'"round": 2') + 9 if name == "checkpoint.json" else len(content) // 2
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(FedMoEError, match=rf"{name} (is corrupt|cannot be read)"):
        load_checkpoint(file.parents[1] if "/" in name else file.parent, fakes.model_arrays())


@pytest.mark.parametrize("name", ["best.safetensors", "clients/gates.npz"])
def test_a_missing_file_is_named(fakes: Any, tmp_path: Path, name: str) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=2)
    path = find_checkpoint(tmp_path)
    (path / name).unlink()
    with pytest.raises(FedMoEError, match=f"{name} cannot be read"):
        load_checkpoint(path, fakes.model_arrays())


@pytest.mark.parametrize("broken", ["save_file", "_digest", "sync"])
def test_a_crash_while_writing_leaves_the_checkpoint_before(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=2)
    before = load_checkpoint(find_checkpoint(tmp_path), fakes.model_arrays())
    state = LoopState(before.state.arrays, round=3, best=before.state.best)
    calls = iter((False, True, True, True))
    original = getattr(checkpoints, broken)

    def crash(*args: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return original(*args)

    loop = fakes.make_loop(fakes.SavingGrid(), tmp_path, fakes.make_settings())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, broken, crash)
        with pytest.raises(KeyboardInterrupt):
            loop.checkpoints.save(state, loop.strategy, fakes.SavingGrid())
    after = load_checkpoint(find_checkpoint(tmp_path), fakes.model_arrays())
    assert after.state.round == 2
    # What the crash left does not disturb the next one.
    assert loop.checkpoints.save(state, loop.strategy, fakes.SavingGrid()).name == "round-000003"
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["round-000002", "round-000003"]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("save_file", OSError(28, "No space left on device")),
        ("save_file", SafetensorError("Error while serializing: I/O error: No space left on device")),
        ("save_clients", FedMoEError("host 0 failed while saving: OSError: No space left on device")),
    ],
)
def test_a_full_disk_is_told_and_leaves_nothing_half_written(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    def full(*args: Any) -> None:
        raise error

    if where == "save_file":
        monkeypatch.setattr(checkpoints, "save_file", full)
    else:
        monkeypatch.setattr(fakes.SavingGrid, "save_clients", full)
    with pytest.raises(FedMoEError, match=r"round-000002 cannot be written: .*No space left"):
        start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=2)
    assert os.listdir(tmp_path / "checkpoints") == []


def test_a_checkpoint_is_written_again_over_itself(fakes: Any, tmp_path: Path) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=4, checkpoint_every=2)
    path = tmp_path / "checkpoints" / "round-000002"
    resume(fakes, fakes.SavingGrid(), path, tmp_path, num_rounds=4)
    assert load_checkpoint(find_checkpoint(tmp_path), fakes.model_arrays()).state.round == 4


def test_later_checkpoints_are_forgotten(fakes: Any, tmp_path: Path) -> None:
    loop = fakes.make_loop(fakes.SavingGrid(), tmp_path, fakes.make_settings())
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=4, checkpoint_every=2)
    loop.checkpoints.forget_after(2)
    assert os.listdir(tmp_path / "checkpoints") == ["round-000002"]


def test_a_checkpoint_half_removed_is_no_checkpoint(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=4, checkpoint_every=2)
    original = shutil.rmtree

    def crash(path: Path, *args: Any, **options: Any) -> None:
        if (path / "best.safetensors").exists():
            (path / "best.safetensors").unlink()
            raise KeyboardInterrupt
        original(path, *args, **options)

    store = CheckpointStore(tmp_path / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            store.forget_after(2)
    assert load_checkpoint(find_checkpoint(tmp_path), fakes.model_arrays()).state.round == 2


def test_private_state_that_cannot_come_back_is_refused(fakes: Any, tmp_path: Path) -> None:
    start(fakes, fakes.FakeGrid(), tmp_path / "without")
    with pytest.raises(FedMoEError, match="holds no private state of the clients"):
        resume(fakes, fakes.SavingGrid(), find_checkpoint(tmp_path / "without"), tmp_path / "a")
    start(fakes, fakes.SavingGrid(), tmp_path / "with")
    with pytest.raises(FedMoEError, match=r"cannot be loaded with this engine; use simulation\.engine=ray"):
        resume(fakes, fakes.FakeGrid(), find_checkpoint(tmp_path / "with"), tmp_path / "b")


def test_without_private_groups_any_grid_resumes(fakes: Any, tmp_path: Path) -> None:
    start(fakes, fakes.FakeGrid(), tmp_path, num_rounds=2)  # all of it warm-up
    checkpoint = load_checkpoint(find_checkpoint(tmp_path), fakes.model_arrays())
    loop = fakes.make_loop(fakes.FakeGrid(), tmp_path / "b", fakes.make_settings())
    assert checkpoint.restore(loop.strategy, loop.grid, needs_clients=False).round == 2


def test_a_checkpoint_moves_with_its_folder(fakes: Any, tmp_path: Path) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path / "a", num_rounds=2)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert load_checkpoint(find_checkpoint(tmp_path / "b"), fakes.model_arrays()).state.round == 2


def test_another_format_is_refused(fakes: Any, tmp_path: Path) -> None:
    start(fakes, fakes.SavingGrid(), tmp_path, num_rounds=2)
    file = find_checkpoint(tmp_path) / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(FedMoEError, match="has format 99, this version reads 2: go on with the version"):
        load_checkpoint(file.parent, fakes.model_arrays())


def test_odd_arrays_survive(fakes: Any, tmp_path: Path) -> None:
    """Scalars, empty arrays, 64-bit and Fortran-ordered arrays come back as they were."""
    arrays = {
        "scalar": np.asarray(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "integers": np.arange(4),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    }
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    loop = fakes.make_loop(fakes.SavingGrid(), tmp_path, fakes.make_settings())
    path = loop.checkpoints.save(LoopState(record, round=1), loop.strategy, loop.grid)
    back = load_checkpoint(path, record).state
    assert list(back.arrays) == list(arrays) and back.best is None
    for name, array in arrays.items():
        np.testing.assert_array_equal(back.arrays[name].numpy(), array)
        assert back.arrays[name].shape == array.shape and back.arrays[name].dtype == str(array.dtype)
