"""Keeps the programs of a folder running: starts them again after a crash, and leaves nothing behind at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from deployment.folder import Folder, read_json, write_json
from errors import FedMoEError

POLL = 0.2  # seconds between two looks at the programs
FAMILY_POLL = 2.0  # seconds between two looks at what they have started
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0  # seconds before a crashed program is started again, doubled each time
STEADY = 60.0  # seconds after which a program counts as healthy again
GRACE = 15.0  # seconds that programs have to end by themselves
LOG_BYTES = 20 * 1024**2
Note = Callable[[str], None]
Identity = tuple[int, float]  # process id and time of its creation: ids are used again, pairs are not


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
    """A program and its processes."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    pause: float = FIRST_PAUSE
    restarts: int = 0
    family: set[Identity] = field(default_factory=set)


class Supervisor:
    """Runs the programs of a folder until SIGTERM or SIGINT. There is one supervisor for a folder."""

    def __init__(self, folder: Folder, programs: Iterable[Program], environment: Mapping[str, str], note: Note) -> None:
        self._folder = folder
        self._programs = [_Running(program) for program in programs]
        self._environment = dict(environment)
        self._note = note
        self._stopping = False
        self._family_due = 0.0

    def run(self) -> None:
        """Run until asked to stop. Raises FedMoEError if another supervisor has the folder."""
        with self._folder.lock.open("w") as lock:
            _lock(lock.fileno(), self._folder)
            end_leftovers(self._folder)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: setattr(self, "_stopping", True))
            try:
                while not self._stopping:
                    self._look()
                    time.sleep(POLL)
            finally:
                self._stop()

    def _look(self) -> None:
        """Start what does not run, and take note of what does."""
        due = time.monotonic() >= self._family_due
        changed = due
        for running in self._programs:
            if running.process is not None and running.process.poll() is not None:
                self._crashed(running)
            if running.process is None and time.monotonic() >= running.start_at:
                self._start(running)
                changed = True
            if due and running.process is not None:
                self._take_note(running)
        if due:
            self._family_due = time.monotonic() + FAMILY_POLL
        if changed:
            write_json(self._folder.supervisor, self._state())

    def _take_note(self, running: _Running) -> None:
        """Look after a program that runs: which processes it has, whether it counts as healthy, how long its log is."""
        assert running.process is not None
        running.family = {member for member in running.family if _alive(member) is not None}
        running.family |= _family(running.process.pid)
        if time.monotonic() - running.started > STEADY:
            running.pause = FIRST_PAUSE
        log = self._log(running)
        if log.stat().st_size > LOG_BYTES:  # the program goes on writing to the same, emptied file
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)

    def _start(self, running: _Running) -> None:
        with self._log(running).open("ab") as output:
            running.process = subprocess.Popen(
                list(running.program.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C is for the supervisor, which stops its programs in good order
            )
        running.started = time.monotonic()
        running.family = _family(running.process.pid)
        self._note(f"{running.program.name} started (process {running.process.pid})")

    def _crashed(self, running: _Running) -> None:
        assert running.process is not None
        status = running.process.returncode
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._note(f"{running.program.name} {how}; starts again in {running.pause:g} s")
        end(running.family, 0.0)  # its own children, which may hold its ports
        running.process, running.family = None, set()
        running.restarts += 1
        running.start_at = time.monotonic() + running.pause
        running.pause = min(2 * running.pause, LONGEST_PAUSE)
        if running.program.crashed is not None:
            running.program.crashed()

    def _stop(self) -> None:
        """End all programs, the last one first, and what they started."""
        for running in reversed(self._programs):
            if running.process is not None:
                running.family |= _family(running.process.pid)
                running.process.terminate()
                _wait(running.process)
            end(running.family, GRACE / 3)
        self._folder.supervisor.unlink(missing_ok=True)
        self._note("stopped")

    def _log(self, running: _Running) -> Path:
        return self._folder.logs / f"{running.program.name}.log"

    def _state(self) -> dict[str, Any]:
        """Return what ``down`` has to know, and people may want to."""
        own = psutil.Process()
        return {
            "process": [own.pid, own.create_time()],
            "programs": {
                running.program.name: {
                    "process": running.process.pid if running.process else None,
                    "restarts": running.restarts,
                    "family": sorted([list(member) for member in running.family]),
                }
                for running in self._programs
            },
        }


def running_supervisor(folder: Folder) -> psutil.Process | None:
    """Return the supervisor of a folder, None if none runs."""
    state = read_json(folder.supervisor)
    return None if state is None else _alive(tuple(state["process"]))


def stop(folder: Folder) -> bool:
    """Stop the supervisor of a folder and all that it started; return whether anything ran.

    Raises FedMoEError if something cannot be ended.
    """
    supervisor = running_supervisor(folder)
    if supervisor is not None:
        supervisor.terminate()
        _, alive = psutil.wait_procs([supervisor], timeout=3 * GRACE)
        if alive:
            supervisor.kill()
    return end_leftovers(folder) or supervisor is not None


def end_leftovers(folder: Folder) -> bool:
    """End what a supervisor that was killed itself has left running; return whether there was anything."""
    state = read_json(folder.supervisor)
    if state is None:
        return False
    family = {tuple(member) for program in state["programs"].values() for member in program["family"]}
    found = end(family, GRACE / 3)
    folder.supervisor.unlink(missing_ok=True)
    return found


def end(processes: Iterable[Identity], grace: float) -> bool:
    """Ask processes to end, kill those that have not after ``grace`` seconds; return whether any was alive."""
    alive = [process for process in map(_alive, processes) if process is not None]
    found = bool(alive)
    for ask in ("terminate", "kill"):
        for process in alive:
            try:
                getattr(process, ask)()
            except psutil.NoSuchProcess:
                continue
            except psutil.AccessDenied as error:
                raise FedMoEError(f"process {process.pid} cannot be ended: {error}") from error
        _, alive = psutil.wait_procs(alive, timeout=grace if ask == "terminate" else GRACE)
    return found


def _family(pid: int) -> set[Identity]:
    """Return a process and all that descend from it."""
    try:
        process = psutil.Process(pid)
        members = [process, *process.children(recursive=True)]
        return {(member.pid, member.create_time()) for member in members}
    except psutil.NoSuchProcess:  # ended while we looked; the next look says more
        return set()


def _alive(identity: Sequence[float]) -> psutil.Process | None:
    pid, created = identity
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - created) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
        return process if same else None
    except psutil.NoSuchProcess:
        return None


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
    os.set_inheritable(handle, False)
