"""Checkpoints: everything from which a run goes on exactly as if it had never stopped.

One folder per checkpoint, ``checkpoints/round-000020/``:

* ``arrays.safetensors`` and ``strategy.safetensors``: the server's arrays and the strategy's own state (moments,
  momentum ...); ``best.safetensors`` and ``best-strategy.safetensors``: the same of the best model so far;
* ``clients/``: the clients' private state, where the grid can save it;
* ``checkpoint.json``: round, history, best score, early-stop counter, the model's schema, a checksum of every file.

A checkpoint is written beside its place and renamed when all of it is on disk, so a crash leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fedmoe.errors import FedMoEError
from fedmoe.files import sync
from fedmoe_server.rounds.record import Best, LoopState, RoundRecord, list_arrays
from strategies import load_state_arrays, state_arrays

FORMAT = 2
INDEX = "checkpoint.json"
CLIENTS = "clients"
NAME = "round-{:06d}"
T = TypeVar("T")
NamedArrays = dict[str, NDArray[Any]]


@runtime_checkable
class SavingGrid(Protocol):
    """A grid that can save and load its clients' private state."""

    def save_clients(self, folder: Path) -> object:
        """Write the state of every client that has any into an existing folder."""

    def load_clients(self, folder: Path) -> object:
        """Replace all clients' state by what ``save_clients`` wrote."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as loaded and verified.

    Attributes:
        path: its folder.
        state: the loop's state.
        strategy_state: the strategy's arrays, for ``strategies.load_state_arrays``.
        clients: folder of the clients' private state, None if the checkpoint holds none.
    """

    path: Path
    state: LoopState
    strategy_state: NamedArrays
    clients: Path | None

    def restore(self, strategy: Strategy, grid: Grid, needs_clients: bool) -> LoopState:
        """Put the strategy's and the clients' state back and return the loop's.

        Args:
            needs_clients: whether clients had private parameters by then, without which the run cannot go on.

        Raises:
            FedMoEError: clients' private state is needed and not in the checkpoint, or the grid cannot load it.
        """
        if self.clients is not None and isinstance(grid, SavingGrid):
            grid.load_clients(self.clients)
        elif needs_clients:
            lacks = "holds no private state of the clients" if self.clients is None else "cannot be loaded"
            raise FedMoEError(
                f"checkpoint {self.path} cannot be resumed: clients keep private parameters after round "
                f"{self.state.round}, and their state {lacks} with this engine; use simulation.engine=ray from the "
                "start, or share all groups (federation.shared)"
            )
        load_state_arrays(strategy, self.strategy_state)
        return self.state


@dataclass(frozen=True)
class CheckpointStore:
    """Writes checkpoints into a folder and keeps the last few."""

    folder: Path
    keep: int = 2

    def save(self, state: LoopState, strategy: Strategy, grid: Grid) -> Path:
        """Write a checkpoint and return its folder.

        Raises:
            FedMoEError: it cannot be written; the one before is as it was.
        """
        target = self.folder / NAME.format(state.round)
        partial = self.folder / f".{target.name}.partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write(partial, state, state_arrays(strategy), grid)
            if target.exists():
                _remove(target)
            os.replace(partial, target)
            sync(self.folder)
        except (OSError, SafetensorError, FedMoEError) as error:
            raise FedMoEError(f"checkpoint {target} cannot be written: {error}") from error
        finally:  # what is published is there no more
            shutil.rmtree(partial, ignore_errors=True)
        for old in _finished(self.folder)[: -self.keep]:
            _remove(old)
        return target

    def forget_after(self, number: int) -> None:
        """Remove checkpoints later than a round, which a resume from that round is going to write again."""
        for path in _finished(self.folder):
            if path.name > NAME.format(number):
                _remove(path)


def stopped_early(path: Path) -> bool:
    """Whether a path is the folder of a run that ended before its first checkpoint: it begins anew."""
    return (path / "settings.yaml").is_file() and not _finished(path / "checkpoints")


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path means: a checkpoint, or the latest one of a run folder.

    Raises:
        FedMoEError: there is none.
    """
    if (path / INDEX).is_file():
        return path
    for folder in (path / "checkpoints", path):
        finished = _finished(folder)
        if finished:
            return finished[-1]
    raise FedMoEError(f"no checkpoint in {path}: give a run folder or one of its checkpoints/round-... folders")


def load_checkpoint(path: Path, arrays: ArrayRecord) -> Checkpoint:
    """Load and verify a checkpoint.

    Args:
        path: its folder.
        arrays: the arrays of the model that is to go on, for their names, shapes and types.

    Raises:
        FedMoEError: a file is missing or corrupt (it is named), or the checkpoint is of another model.
    """
    index = _read_index(path)
    _same_model(path, index["schema"], _schema(arrays))
    for name, digest in index["files"].items():
        if _read(path / name, _digest) != digest:
            raise FedMoEError(f"checkpoint file {path / name} is corrupt (its checksum differs); {_other(path)}")
    state = LoopState(
        arrays=list_arrays(_load(path / "arrays.safetensors", list(arrays))),
        round=index["round"],
        stalled=index["stalled"],
        history=[RoundRecord.from_json(record) for record in index["history"]],
    )
    if (best := index["best"]) is not None:
        best_arrays = list_arrays(_load(path / "best.safetensors", list(arrays)))
        best_strategy = _load(path / "best-strategy.safetensors", best["strategy"])
        state.best = Best(best["round"], best["score"], dict(best_arrays.items()), best_strategy)
    strategy = _load(path / "strategy.safetensors", index["strategy"])
    return Checkpoint(path, state, strategy, path / CLIENTS if index["clients"] else None)


def _write(folder: Path, state: LoopState, strategy: Mapping[str, NDArray[Any]], grid: Grid) -> None:
    """Write all files of a checkpoint, the index with their checksums last, and force them to disk."""
    _save(folder / "arrays.safetensors", {name: array.numpy() for name, array in state.arrays.items()})
    _save(folder / "strategy.safetensors", strategy)
    if (best := state.best) is not None:
        _save(folder / "best.safetensors", {name: array.numpy() for name, array in best.arrays.items()})
        _save(folder / "best-strategy.safetensors", best.strategy)
    if isinstance(grid, SavingGrid):
        (folder / CLIENTS).mkdir()
        grid.save_clients(folder / CLIENTS)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    index: dict[str, Any] = {
        "format": FORMAT,
        "round": state.round,
        "stalled": state.stalled,
        "best": best and {"round": best.round, "score": best.score, "strategy": list(best.strategy)},
        "schema": _schema(state.arrays),
        "strategy": list(strategy),
        "clients": isinstance(grid, SavingGrid),
        "files": {path.relative_to(folder).as_posix(): _digest(path) for path in files},
        "history": [record.to_json() for record in state.history],
    }
    index["digest"] = _index_digest(index)
    (folder / INDEX).write_text(json.dumps(index, allow_nan=False), encoding="utf-8")
    for path in [*files, folder / INDEX, folder / CLIENTS, folder]:
        if path.exists():
            sync(path)


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)


def _load(file: Path, order: Sequence[str]) -> NamedArrays:
    """Load a file of arrays in an order, which safetensors does not keep."""
    arrays = _read(file, load_file)
    return {name: arrays[name] for name in order}


def _read(file: Path, reader: Callable[[Path], T]) -> T:
    try:
        return reader(file)
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise FedMoEError(f"checkpoint file {file} cannot be read: {error}; {_other(file.parent)}") from error


def _read_index(path: Path) -> dict[str, Any]:
    file = path / INDEX
    index: dict[str, Any] = _read(file, lambda file: dict(json.loads(file.read_text(encoding="utf-8")).items()))
    stated = index.pop("digest", None)
    if index.get("format") != FORMAT:
        other = f"checkpoint file {file} has format {index.get('format')!r}, this version reads {FORMAT}"
        raise FedMoEError(f"{other}: go on with the version of FedMoE that began the run, or start a new run")
    if stated != _index_digest(index):
        raise FedMoEError(f"checkpoint file {file} is corrupt (its checksum differs); {_other(path)}")
    return index


def _schema(arrays: ArrayRecord) -> list[list[Any]]:
    """Return [name, shape, element type] of every parameter, in the model's order."""
    return [[name, list(array.shape), array.dtype] for name, array in arrays.items()]


def _same_model(path: Path, theirs: list[list[Any]], ours: list[list[Any]]) -> None:
    """Refuse a checkpoint of another model with the first parameter that differs and both shapes."""
    if theirs == ours:
        return
    there, here = {row[0]: row[1:] for row in theirs}, {row[0]: row[1:] for row in ours}
    names = [*here, *(name for name in there if name not in here)]
    for name in names:
        if there.get(name) != here.get(name):
            raise FedMoEError(
                f"checkpoint {path} is of another model: parameter '{name}' has {_shape(there.get(name))} there and "
                f"{_shape(here.get(name))} here; resume with the settings of that run (its settings.yaml)"
            )
    raise FedMoEError(f"checkpoint {path} is of another model: its parameters are in another order")


def _shape(entry: list[Any] | None) -> str:
    return "no array" if entry is None else f"shape {tuple(entry[0])} of {entry[1]}"


def _other(path: Path) -> str:
    return f"resume from another checkpoint beside {path.name} instead"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _index_digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _finished(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, the latest last."""
    return sorted(path for path in folder.glob("round-*") if (path / INDEX).is_file())


def _remove(path: Path) -> None:
    """Remove a checkpoint; under another name first, so that a half-removed one is never taken for a checkpoint."""
    dying = path.with_name(f".{path.name}.old")
    shutil.rmtree(dying, ignore_errors=True)
    os.replace(path, dying)
    shutil.rmtree(dying)
