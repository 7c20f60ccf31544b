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
from fedmoe.deployment.folder import Folder
from fedmoe.deployment.processes import GRACE, end_all, identity, running_supervisor, still_there
from fedmoe.errors import FedMoEError
from fedmoe.files import write_json

POLL = 0.2  # seconds between two looks at the programs
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0  # seconds before a crashed program is started again, doubled each time
STEADY = 60.0  # seconds after which a program counts as healthy again
SILENT = 90.0  # seconds without a sign of life after which a program is ended and started again
LOG_BYTES = 20 * 1024**2
LAST_LINES = 12  # of a log, shown when its program did not start


@dataclass(frozen=True)
class Program:
    """A program to keep running: ``name`` for people and for its log file, ``command`` to start it.

    crashed: called after an unexpected end, before the program is started again.
    needs: name of the program that it serves, and ends with.
    together: that one is started anew with it, since it would wait for what this one was doing.
    ready: whether what it needs is there; it is started as soon as that is so.
    beats: it touches the file that ``FEDMOE_BEAT`` names, and has died, whatever runs of it, once it no longer does.
    """

    name: str
    command: Sequence[str]
    crashed: Callable[[], None] | None = None
    needs: str | None = None
    together: bool = False
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
    asked: bool = False  # to end, because another program had ended
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
            own = {BEAT: str(running.beat.absolute())} if running.program.beats else {}
            environment = {**self._environment, **own}
            running.process = _detached(running.program.command, output, environment)
        running.started, running.asked = time.monotonic(), False
        note(f"{running.program.name} started (process {running.process.pid})")
        write_json(self._folder.supervisor, self._state())

    def _crashed(self, running: _Running, status: int) -> None:
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        note(f"{running.program.name} {how}; starts again in {running.pause:g} s")
        running.process = None
        running.restarts += 1
        running.start_at = time.monotonic() + running.pause
        running.pause = min(2 * running.pause, LONGEST_PAUSE)
        if not running.asked:
            self._end_with(running.program)
        if running.program.crashed is not None:
            running.program.crashed()

    def _end_with(self, ended: Program) -> None:
        """End the programs that are to be started anew with one that has ended."""
        for other in self._programs:
            bound = other.program.needs == ended.name or (ended.together and ended.needs == other.program.name)
            if bound and other.process is not None:
                other.asked = True
                other.process.terminate()

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
            running.program.name: {
                **identity(running.process.pid if running.process else None),
                "restarts": running.restarts,
            }
            for running in self._programs
        }
        return {"process": own.pid, "created": own.create_time(), "programs": programs}


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


def end_leftovers(folder: Folder) -> None:
    """End what a supervisor that was killed has left running. Raises FedMoEError if a supervisor has the folder."""
    with folder.lock.open("w") as lock:
        _lock(lock.fileno(), folder)
        end_all(folder)


def stop(folder: Folder) -> bool:
    """Stop the supervisor of a folder and all that it started; return whether anything ran.

    Raises FedMoEError if something cannot be ended.
    """
    supervisor = running_supervisor(folder)
    if supervisor is not None:
        supervisor.terminate()
        if still_there([supervisor], 6 * GRACE):
            supervisor.kill()
    return end_all(folder) or supervisor is not None


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
