"""Keeps the programs of a folder running: starts them again after a crash, and leaves nothing behind at the end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from fedmoe.deployment.flower_part import BEAT
from fedmoe.deployment.folder import TAG, Folder, read_json, write_json
from fedmoe.errors import FedMoEError

POLL = 0.2  # seconds between two looks at the programs
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0  # seconds before a crashed program is started again, doubled each time
STEADY = 60.0  # seconds after which a program counts as healthy again
GRACE = 10.0  # seconds that programs have to end by themselves
SILENT = 90.0  # seconds without a sign of life after which a program is ended and started again
LOG_BYTES = 20 * 1024**2
LAST_LINES = 12  # of a log, shown when its program did not start


@dataclass(frozen=True)
class Program:
    """A program to keep running: ``name`` for people and for its log file, ``command`` to start it.

    crashed: called after an unexpected end, before the program is started again.
    needs: name of the program that it serves, and ends with.
    ready: whether what it needs is there; it is started as soon as that is so.
    beats: it touches the file that ``FEDMOE_BEAT`` names, and has died, whatever runs of it, once it no longer does.
    """

    name: str
    command: Sequence[str]
    crashed: Callable[[], None] | None = None
    needs: str | None = None
    ready: Callable[[], bool] = lambda: True
    beats: bool = False


@dataclass
class _Running:
    """A program, its process if there is one, and when to start it or to start it again."""

    program: Program
    log: Path
    beat: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float = 0.0
    pause: float = FIRST_PAUSE
    restarts: int = 0
    last_beat: int = 0  # time of the file, in ns, by a clock that may be set
    beat_seen: float = 0.0  # when that time was first seen, by one that stands still while the machine sleeps

    def silent(self, now: float) -> bool:
        """Whether the program has not given a sign of life for too long."""
        beat = self.beat.stat().st_mtime_ns if self.beat.exists() else 0
        if beat != self.last_beat:
            self.last_beat, self.beat_seen = beat, now
        return self.program.beats and now - max(self.beat_seen, self.started) > SILENT


class Supervisor:
    """Runs the programs of a folder until SIGTERM or SIGINT. There is one supervisor for a folder."""

    def __init__(self, folder: Folder, programs: Iterable[Program], environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._programs = [
            _Running(program, folder.logs / f"{program.name}.log", folder.logs / f"{program.name}.beat")
            for program in programs
        ]
        self._environment = environment
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
            if now >= running.start_at and running.program.ready():
                self._start(running)
        elif running.process.poll() is not None:
            self._crashed(running, running.process.returncode)
        elif running.silent(now):
            note(f"{running.program.name} has given no sign of life for {SILENT:g} s")
            running.process.kill()
        else:
            if now - running.started > STEADY:
                running.pause = FIRST_PAUSE
            if running.log.stat().st_size > LOG_BYTES:  # the program goes on writing to the same, emptied file
                shutil.copyfile(running.log, running.log.with_suffix(".log.1"))
                os.truncate(running.log, 0)

    def _start(self, running: _Running) -> None:
        with running.log.open("ab") as output:
            environment = {**self._environment, BEAT: str(running.beat.absolute())}
            running.process = _detached(running.program.command, output, environment)
        running.started = time.monotonic()
        note(f"{running.program.name} started (process {running.process.pid})")
        write_json(self._folder.supervisor, self._state())

    def _crashed(self, running: _Running, status: int) -> None:
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        note(f"{running.program.name} {how}; starts again in {running.pause:g} s")
        running.process = None
        running.restarts += 1
        running.start_at = time.monotonic() + running.pause
        running.pause = min(2 * running.pause, LONGEST_PAUSE)
        for other in self._programs:
            if other.program.needs == running.program.name and other.process is not None:
                other.process.terminate()
        if running.program.crashed is not None:
            running.program.crashed()

    def _stop(self) -> None:
        """End all programs, the last one first, and whatever they have started."""
        for running in reversed(self._programs):
            if running.process is not None:
                running.process.terminate()
                _wait(running.process)
        end_all(self._folder)
        note("stopped")

    def _state(self) -> dict[str, Any]:
        """Return what ``down`` has to know, and people may want to."""
        own = psutil.Process()
        programs = {
            running.program.name: {**_identity(running.process), "restarts": running.restarts}
            for running in self._programs
        }
        return {"process": own.pid, "created": own.create_time(), "programs": programs}


def _identity(process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    """Return what finds a process again: its id, and when it was created, since ids are used again."""
    if process is None:
        return {"process": None}
    try:
        return {"process": process.pid, "created": psutil.Process(process.pid).create_time()}
    except psutil.NoSuchProcess:
        return {"process": None}


def start_in_background(folder: Folder, module: str, words: Sequence[str], ready: Callable[[], bool]) -> None:
    """Start ``python -m module words`` detached from this terminal and wait until ``ready()``.

    Its output goes to ``logs/supervisor.log``. Raises FedMoEError with the log's last lines if it ends before.
    """
    log = folder.logs / "supervisor.log"
    with log.open("wb") as output:
        process = _detached([sys.executable, "-m", module, *words], output, folder.environment(os.environ))
    while not ready():
        if process.poll() is not None:
            lines = last_lines(log)
            told = [line for line in lines.splitlines() if line.startswith("error: ")]
            why = told[-1].removeprefix("error: ") if told else f"it ended at once; {log} says:\n{lines}"
            raise FedMoEError(why)
        time.sleep(POLL)


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """Return the last lines of a log file, "" if there is none."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""


def require_stopped(folder: Folder, what: str) -> None:
    """Raise FedMoEError if the folder's supervisor runs; what: ``server`` or ``client``."""
    if running_supervisor(folder) is not None:
        raise FedMoEError(f"the {what} of {folder.path} runs already: stop it with 'down' first")


def running_supervisor(folder: Folder) -> psutil.Process | None:
    """Return the supervisor of a folder, None if none runs."""
    state = read_json(folder.supervisor)
    if state is None:
        return None
    return _recorded(state)


def _recorded(state: Mapping[str, Any]) -> psutil.Process | None:
    """Return the process of an ``_identity``, None if it has ended."""
    try:
        process = psutil.Process(state["process"])
        same = abs(process.create_time() - state["created"]) < 0.05
        return process if same and runs(process) else None
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
    noted = [each for each in read_json(folder.supervisor, {}).get("programs", {}).values() if each["process"]]
    found = [process for process in map(_recorded, noted) if process is not None]
    spared |= {process.pid for process in found}
    for process in psutil.process_iter():
        try:
            if process.pid not in spared and process.environ().get(TAG) == mark:
                found.append(process)
        except (psutil.Error, OSError):  # not ours to read, or gone by now
            continue
    return found


def note(text: str) -> None:
    """Print a line for the log, with the time of day in UTC."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {text}", flush=True)


def _detached(command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own: a Ctrl-C is for the supervisor, which stops programs in good order."""
    return subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
    )


def _still_there(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
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
