"""The folder of one run: where it is, whether it can be written, and what it holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml

from data.sampling import NEW
from fedmoe.errors import FedMoEError
from fedmoe.files import read_json, write_json
from fedmoe.settings import Settings
from fedmoe_server.rounds.record import Metrics, Result, RoundRecord

METRICS = "metrics.jsonl"
RESULT = "result.json"
RUN = "run.json"  # whether the clients are simulated, and hashes of the data
SETTINGS = "settings.yaml"
BASELINES = "baselines.json"
PRIVACY = "privacy.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"

KEPT_CHECKPOINTS = 2
# In a checkpoint: the arrays, the best arrays, and up to two moments of an adaptive strategy.
ARRAYS_PER_CHECKPOINT = 4
LOGS_BYTES = 16 * 1024**2
LOG_BYTES_PER_ROUND = 4096

Splits = Mapping[str, Metrics]
"""For ``validation``, ``test`` and, where items were withheld, ``new``: means over users by name, as ``hr@10``."""


@dataclass(frozen=True)
class Run:
    """What a run has left in its folder.

    Attributes:
        folder: the run folder.
        settings: the tree of ``settings.yaml``, unchecked: it may be of another version.
        records: the rounds that are done.
        result: the end of the run; its status is ``unfinished`` where there is no file.
        baselines: what the run is compared with, by name.
    """

    folder: Path
    settings: Mapping[str, Any]
    records: tuple[RoundRecord, ...]
    result: Result
    baselines: Mapping[str, Splits]

    @property
    def averaged(self) -> str:
        """Whom the figures of the end are means over, in words."""
        return averaged(self.result)

    @property
    def server_section(self) -> str:
        """The report's section on what the server saw of real clients; nothing for a simulation."""
        sees = seen_by_the_server(self.folder)
        return f"## What the server saw\n\n{sees}." if sees else ""


def read_run(folder: Path) -> Run:
    """Read a run folder. FedMoEError: it holds no run, or a file is damaged (it is named)."""
    records = read_records(folder / METRICS)
    path = folder / SETTINGS
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FedMoEError(f"{path} is missing; give the folder of a run") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FedMoEError(f"{path} cannot be read: {error}") from error
    return Run(folder, settings, records, read_result(folder), baselines_of(folder))


def read_records(path: Path) -> tuple[RoundRecord, ...]:
    """Read the lines of ``metrics.jsonl``; the last one may be cut off. FedMoEError: another is damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FedMoEError(f"{path} cannot be read: {error}; give the folder of a run") from error
    records = []
    for position, line in enumerate(lines, start=1):
        try:
            records.append(RoundRecord.from_json(json.loads(line)))
        except ValueError as error:
            if position == len(lines):  # the run was cut off while it wrote this line
                break
            raise FedMoEError(f"{path}, line {position}, is not JSON: {error}") from error
    return tuple(records)


def read_result(run_dir: Path) -> Result:
    """Read ``result.json``; without it the run is unfinished. FedMoEError: it is damaged."""
    path = run_dir / RESULT
    try:
        return Result.from_json(read_json(path, {}))
    except (TypeError, AttributeError) as error:
        raise FedMoEError(f"{path} cannot be read: {error}") from error


def federated_metrics(run_dir: Path) -> dict[str, Splits]:
    """Return a completed run's own figures, with the server's model alone and with the private parameters."""
    result = read_result(run_dir)
    if not (result.validation and result.test):
        raise FedMoEError(f"{run_dir / RESULT} holds no result: name the folder of a completed run")
    splits = {"validation": result.validation, "test": result.test} | ({NEW: result.new} if result.new else {})
    return {
        f"federated, {kind}": {split: found[kind] for split, found in splits.items()}
        for kind in ("global", "personalised")
    }


def baselines_of(run_dir: Path) -> dict[str, Splits]:
    """Return the baselines in a run folder by name; raises FedMoEError if the file is damaged."""
    known: dict[str, Splits] = read_json(run_dir / BASELINES, {})
    return known


def add_baseline(run_dir: Path, name: str, metrics: Splits) -> None:
    """Add or replace a baseline in the run folder."""
    write_document(run_dir / BASELINES, {**baselines_of(run_dir), name: metrics})


def write_document(path: Path, content: Any) -> None:
    """Write a JSON file of the run folder, which others may read."""
    write_json(path, content, mode=0o644)


def new_run_dir(settings: Settings, now: datetime) -> Path:
    """Make and return ``save_dir/<time>-<name>``, with a number behind it if that exists already.

    It is made at once, so that runs that start in the same second have folders of their own. Where it cannot be made,
    ``check_run_dir`` says why.
    """
    base = settings.save_dir / f"{now:%Y%m%d-%H%M%S}-{settings.name}"
    candidate, number = base, 2
    while True:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if not candidate.is_dir():
                return candidate  # something above it is a file
            candidate, number = base.with_name(f"{base.name}-{number}"), number + 1
            continue
        except OSError:
            pass
        return candidate


@contextmanager
def removed_if_empty(run_dir: Path) -> Iterator[None]:
    """Remove a run folder that has nothing in it when the block ends, and the folder of runs if that was all it held.

    The run was refused before it began.
    """
    try:
        yield
    finally:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()
            if run_dir.parent.resolve() not in (Path.cwd(), *Path.cwd().parents):
                with suppress(OSError):  # it holds other runs, or is not ours to remove
                    run_dir.parent.rmdir()


def describe_run(run_dir: Path, simulated: bool, data: Mapping[str, str], going_on: bool, sees: str = "") -> None:
    """Write ``run.json``: whether the clients are simulated, hashes of the data by name, what the server sees.

    Raises FedMoEError if the run goes on with other data, or with the other kind of clients, than it began with.
    """
    path, told = run_dir / RUN, {"simulated": simulated, "data": dict(data), "sees": sees}
    if going_on and (before := read_json(path)) is not None:
        if before.get("simulated", simulated) != simulated:
            kind = "simulated" if before["simulated"] else "real"
            raise FedMoEError(f"{run_dir} is a run of {kind} clients: go on with it as it began")
        if changed := [name for name, hashed in before.get("data", {}).items() if data.get(name) != hashed]:
            raise FedMoEError(
                f"{run_dir} began with other data: {', '.join(changed)} changed since - put the files back, or start a "
                "new run"
            )
    write_document(path, told)


def seen_by_the_server(run_dir: Path) -> str:
    """Return what the server sees of a run's clients, in words; "" for a simulation, and before a run has begun."""
    return str(read_json(run_dir / RUN, {}).get("sees", ""))


def averaged(result: Result) -> str:
    """Return whom the figures of a run's end are means over, in words."""
    asked = {"test": result.final_clients, "validation": result.sampled or result.final_clients}
    if not result.final_failures or result.final_clients is None:
        sample = f", on validation over a sample of {result.sampled}" if result.sampled else ""
        return f"all users{sample}"
    failed = {split: sum(each.stage == split for each in result.final_failures) for split in asked}
    counted = [f"{(asked[split] or 0) - count} of {asked[split]} ({split})" for split, count in failed.items()]
    return f"the users of those clients that answered, {' and '.join(counted)}"


def is_simulated(run_dir: Path) -> bool:
    """Whether a run's clients were simulated; a run folder that does not say so is of a simulation."""
    return bool(read_json(run_dir / RUN, {}).get("simulated", True))


def bytes_needed(model_bytes: int, client_bytes: int, clients: int, rounds: int) -> int:
    """Estimate the disk space of a run in bytes.

    Args:
        model_bytes: all parameters.
        client_bytes: private parameters of one client that a checkpoint holds, 0 if it holds none.
        clients: clients that will be met, at most.
        rounds: number of rounds.
    """
    checkpoint = ARRAYS_PER_CHECKPOINT * model_bytes + clients * client_bytes
    # One more than is kept: the next one is complete before the oldest goes.
    return (KEPT_CHECKPOINTS + 1) * checkpoint + LOGS_BYTES + rounds * LOG_BYTES_PER_ROUND


def check_run_dir(run_dir: Path, needed: int, resuming: bool) -> None:
    """Make the run folder, or refuse one that cannot be used. Nothing is left behind when it is refused.

    Args:
        needed: bytes the run will write, as estimated.
        resuming: whether an earlier run in this folder is to be continued.

    Raises:
        FedMoEError: too little space, another run in the folder, or the folder cannot be written.
    """
    if not resuming and (run_dir / METRICS).exists():
        raise FedMoEError(f"run folder {run_dir} already holds a run: resume it, or choose another folder")
    whole = run_dir.absolute()
    existing = next(path for path in (whole, *whole.parents) if path.exists())
    if not existing.is_dir():
        raise FedMoEError(f"run folder {run_dir}: {existing} is a file, not a folder: choose another save_dir")
    try:
        free = shutil.disk_usage(existing).free
        with TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise FedMoEError(f"run folder {run_dir} cannot be written ({reason}): choose another save_dir") from error
    if free < needed:
        raise FedMoEError(
            f"run folder {run_dir}: the run needs about {_megabytes(needed)} for checkpoints and logs, "
            f"{existing} has {_megabytes(free)} free: free some space or choose another save_dir"
        )
    run_dir.mkdir(parents=True, exist_ok=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
