"""The folder of one run: where it is, and whether it can be written before anything starts."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings

METRICS = "metrics.jsonl"
RESULT = "result.json"
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


def new_run_dir(settings: Settings, now: datetime) -> Path:
    """Return ``save_dir/<time>-<name>``, with a number behind it if that exists already."""
    base = settings.save_dir / f"{now:%Y%m%d-%H%M%S}-{settings.name}"
    candidate, number = base, 2
    while candidate.exists():
        candidate, number = base.with_name(f"{base.name}-{number}"), number + 1
    return candidate


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
    """Refuse a run folder that cannot be used. Nothing is left behind when it is refused.

    Args:
        needed: bytes the run will write, as estimated.
        resuming: whether an earlier run in this folder is to be continued.

    Raises:
        FedMoEError: too little space, another run in the folder, or the folder cannot be written.
    """
    if not resuming and (run_dir / METRICS).exists():
        raise FedMoEError(f"run folder {run_dir} already holds a run: resume it, or choose another folder")
    existing = run_dir.absolute()
    missing: list[Path] = []
    while not existing.exists():
        missing.append(existing)
        existing = existing.parent
    if not existing.is_dir():
        raise FedMoEError(f"run folder {run_dir}: {existing} is a file, not a folder: choose another save_dir")
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise FedMoEError(f"run folder {run_dir}: cannot tell the free space of {existing}: {error}") from error
    if free < needed:
        raise FedMoEError(
            f"run folder {run_dir}: the run needs about {_megabytes(needed)} for checkpoints and logs, "
            f"{existing} has {_megabytes(free)} free: free some space or choose another save_dir"
        )
    _try_to_write(run_dir, missing)


def _try_to_write(run_dir: Path, missing: list[Path]) -> None:
    """Create the folder and a file in it; take back what was created if that fails."""
    probe = run_dir / ".writable"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        for folder in missing:  # the innermost first
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        reason = error.strerror or str(error)
        raise FedMoEError(f"run folder {run_dir} cannot be written ({reason}): choose another save_dir") from error


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
