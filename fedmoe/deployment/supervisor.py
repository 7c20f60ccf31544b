"""Keeps the programs of a folder running: starts them again after a crash, and leaves nothing behind at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fedmoe.deployment.folder import TAG, Folder, read_json, write_json
from fedmoe.errors import FedMoEError

POLL = 0.2  # seconds between two looks at the programs
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0  # seconds before a crashed program is started again, doubled each time
STEADY = 60.0  # seconds after which a program counts as healthy again
GRACE = 10.0  # seconds that programs have to end by themselves
LOG_BYTES = 20 * 1024**2
Note = Callable[[str], None]


@dataclass(frozen=True)
class Program:
    """A program to keep running.

    Attributes:
        name: for people, and of its log file.
        command: what to start.
        crashed: called after an unexpected end, before it is started again.
    """

    name: str
    command: Sequence[str]
    crashed: Callable[[], None] | None = None


@dataclass
class _Running:
    """A program, its process if there is one, and when to start it (again)."""

    program: Program
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    pause: float = FIRST_PAUSE
    restarts: int = 0


class Supervisor:
    """Runs the programs of a folder until SIGTERM or SIGINT. There is one supervisor for a folder."""

    def __init__(self, folder: Folder, programs: Iterable[Program], environment: Mapping[str, str], note: Note) -> None:
        self._folder = folder
        self._programs = [_Running(program, folder.logs / f"{program.name}.log") for program in programs]
        self._environment = dict(environment)
        self._note = note
        self._stopping = False

    def run(self) -> None:
        """Run until asked to stop. Raises FedMoEError if another supervisor has the folder."""
        with self._folder.lock.open("w") as lock:
            _lock(lock.fileno(), self._folder)
            end_all(self._folder)  # what a supervisor that was killed itself has left
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.request_stop())
            try:
                while not self._stopping:
                    for running in self._programs:
                        self._look(running)
                    time.sleep(POLL)
            finally:
                self._stop()

    def request_stop(self) -> None:
        """Let ``run`` end."""
        self._stopping = True

    def _look(self, running: _Running) -> None:
        """Start a program that does not run, and look after one that does."""
        now = time.monotonic()
        if running.process is None:
            if now >= running.start_at:
                self._start(running)
        elif running.process.poll() is not None:
            self._crashed(running, running.process.returncode)
        else:
            if now - running.started > STEADY:
                running.pause = FIRST_PAUSE
            if running.log.stat().st_size > LOG_BYTES:  # the program goes on writing to the same, emptied file
                shutil.copyfile(running.log, running.log.with_suffix(".log.1"))
                os.truncate(running.log, 0)

    def _start(self, running: _Running) -> None:
        with running.log.open("ab") as output:
            running.process = subprocess.Popen(
                list(running.program.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C is for the supervisor, which stops its programs in good order
            )
        running.started = time.monotonic()
        self._note(f"{running.program.name} started (process {running.process.pid})")
        write_json(self._folder.supervisor, self._state())

    def _crashed(self, running: _Running, status: int) -> None:
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._note(f"{running.program.name} {how}; starts again in {running.pause:g} s")
        running.process = None
        running.restarts += 1
        running.start_at = time.monotonic() + running.pause
        running.pause = min(2 * running.pause, LONGEST_PAUSE)
        if running.program.crashed is not None:
            running.program.crashed()

    def _stop(self) -> None:
        """End all programs, the last one first, and whatever they have started."""
        for running in reversed(self._programs):
            if running.process is not None:
                running.process.terminate()
                _wait(running.process)
        end_all(self._folder)
        self._note("stopped")

    def _state(self) -> dict[str, Any]:
        """Return what ``down`` has to know, and people may want to."""
        own = psutil.Process()
        programs = {
            running.program.name: {"process": running.process and running.process.pid, "restarts": running.restarts}
            for running in self._programs
        }
        return {"process": own.pid, "created": own.create_time(), "programs": programs}


def running_supervisor(folder: Folder) -> psutil.Process | None:
    """Return the supervisor of a folder, None if none runs."""
    state = read_json(folder.supervisor)
    if state is None:
        return None
    try:
        process = psutil.Process(state["process"])
        same = abs(process.create_time() - state["created"]) < 0.05  # process ids are used again
        return process if same and _runs(process) else None
    except psutil.NoSuchProcess:
        return None


def stop(folder: Folder) -> bool:
    """Stop the supervisor of a folder and all that it started; return whether anything ran.

    Raises FedMoEError if something cannot be ended.
    """
    supervisor = running_supervisor(folder)
    if supervisor is not None:
        supervisor.terminate()
        if _still_there([supervisor], 6 * GRACE):
            supervisor.kill()
    return end_all(folder) or supervisor is not None


def end_all(folder: Folder) -> bool:
    """End every process that belongs to a folder but this one; return whether there was any.

    Processes are known by their environment, which what they start inherits: so none is missed that has lost its
    parent, and none is hit that only has a number used before.
    """
    alive = _of(folder)
    found = bool(alive)
    for ask, seconds in (("terminate", GRACE / 2), ("kill", GRACE)):
        for process in alive:
            try:
                getattr(process, ask)()
            except psutil.NoSuchProcess:
                continue
        alive = _still_there(alive, seconds)
    if alive:
        raise FedMoEError(f"processes {', '.join(str(process.pid) for process in alive)} cannot be ended")
    folder.supervisor.unlink(missing_ok=True)
    return found


def _of(folder: Folder) -> list[psutil.Process]:
    """Return the processes that belong to a folder, without this one and those that it runs in."""
    mark = str(folder.path.absolute())
    own = psutil.Process()
    spared = {own.pid, *(parent.pid for parent in own.parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in spared and process.environ().get(TAG) == mark:
                found.append(process)
        except (psutil.Error, OSError):  # not ours to read, or gone by now
            continue
    return found


def _still_there(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to end; return those that have not. A zombie has."""
    deadline = time.monotonic() + seconds
    while True:
        processes = [process for process in processes if _runs(process)]
        if not processes or time.monotonic() > deadline:
            return processes
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _lock(handle: int, folder: Folder) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise FedMoEError(
            f"{folder.path} is in use by another 'up': stop it with 'down', or choose another --dir"
        ) from error
