"""The processes that belong to a folder, found and ended: none is missed, and none of another folder is hit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import psutil

from fedmoe.deployment.folder import TAG, Folder
from fedmoe.errors import FedMoEError
from fedmoe.files import read_json

GRACE = 10.0  # seconds that programs have to end by themselves


def running_supervisor(folder: Folder) -> psutil.Process | None:
    """Return the supervisor of a folder, None if none runs."""
    state = read_json(folder.supervisor)
    if state is None:
        return None
    return recorded(state)


def end_all(folder: Folder) -> bool:
    """End every process that belongs to a folder but this one; return whether there was any.

    Processes are known by their environment, which what they start inherits: so none is missed that has lost its
    parent, and none is hit that only has a number used before. Those that hide their environment, as Flower's
    superexec does, are in the supervisor's file.
    """
    alive = _of(folder)
    found = bool(alive)
    for ask, seconds in (("terminate", GRACE / 2), ("kill", GRACE)):
        for process in alive:
            try:
                getattr(process, ask)()
            except psutil.NoSuchProcess:
                continue
        alive = still_there(alive, seconds)
    if alive:
        raise FedMoEError(f"processes {', '.join(str(process.pid) for process in alive)} cannot be ended")
    folder.supervisor.unlink(missing_ok=True)
    return found


def _of(folder: Folder) -> list[psutil.Process]:
    """Return the processes that belong to a folder, without this one and those that it runs in."""
    mark = str(folder.path.absolute())
    own = psutil.Process()
    spared = {own.pid, *(parent.pid for parent in own.parents())}
    noted = [each for each in read_json(folder.supervisor, {}).get("programs", {}).values() if each["process"]]
    found = [process for process in map(recorded, noted) if process is not None]
    spared |= {process.pid for process in found}
    for process in psutil.process_iter():
        try:
            if process.pid not in spared and process.environ().get(TAG) == mark:
                found.append(process)
        except (psutil.Error, OSError):  # not ours to read, or gone by now
            continue
    return found


def recorded(state: Mapping[str, Any]) -> psutil.Process | None:
    """Return the process of an ``identity``, None if it has ended."""
    try:
        process = psutil.Process(state["process"])
        same = abs(process.create_time() - state["created"]) < 0.05
        return process if same and runs(process) else None
    except psutil.NoSuchProcess:
        return None


def identity(process: int | None) -> dict[str, Any]:
    """Return what finds a process again: its id, and when it was created, since ids are used again."""
    if process is None:
        return {"process": None}
    try:
        return {"process": process, "created": psutil.Process(process).create_time()}
    except psutil.NoSuchProcess:
        return {"process": None}


def still_there(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to end; return those that have not. A zombie has."""
    deadline = time.monotonic() + seconds
    while True:
        processes = [process for process in processes if runs(process)]
        if not processes or time.monotonic() > deadline:
            return processes
        time.sleep(0.05)


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended. A zombie has."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
