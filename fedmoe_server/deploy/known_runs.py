"""The runs that were submitted from a server's folder, and how each is doing.

How a run is doing is read on this machine: its app holds a lock on the file that a person follows for as long as it
lives, and what it leaves behind says how it ended. So a server that is away, or slow to notice, hides nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe.files import read_json, write_json
from fedmoe_server.deploy.deployed import held, progress_log
from fedmoe_server.deploy.server_folder import ServerFolder
from fedmoe_server.report.run_folder import CHECKPOINTS, read_result


class State(Enum):
    """How a run is doing, in the word that people read."""

    WAITING = "waiting"  # the server has not started its app yet
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"  # by ``stop``
    KILLED = "killed"  # its app was ended and could say nothing
    RESUMED = "resumed"  # a later run goes on with its folder

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self not in (State.WAITING, State.RUNNING)


@dataclass(frozen=True)
class KnownRun:
    """A submitted run.

    Attributes:
        number: its id at the server.
        folder: its run folder.
        submitted: seconds since 1970.
        ended: the value of the state in which it ended, where its folder cannot tell.
    """

    number: str
    folder: str
    submitted: float
    ended: str | None = None

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.folder)


def note_run(server: ServerFolder, number: str, run_dir: Path) -> KnownRun:
    """Write down a run that the server has accepted."""
    run = KnownRun(number, str(run_dir), time.time())
    server.submitted.mkdir(mode=0o700, exist_ok=True)
    write_json(server.submitted / f"{number}.json", asdict(run))
    return run


def note_end(server: ServerFolder, run: KnownRun, state: State) -> None:
    """Write down that a run was stopped by a person, or failed before it began."""
    write_json(server.submitted / f"{run.number}.json", asdict(replace(run, ended=state.value)))


def known_runs(server: ServerFolder) -> list[KnownRun]:
    """Return all runs that were submitted, the latest last."""
    found = [KnownRun(**read_json(file)) for file in server.submitted.glob("*.json")]
    return sorted(found, key=lambda run: run.submitted)


def find_run(server: ServerFolder, word: str | None, among: list[KnownRun] | None = None) -> KnownRun:
    """Return the run that a word means: its number, or the name or path of its folder (then the latest in it).

    word: None is the latest one. among: the runs to choose from; None: all. Raises FedMoEError if there is none.
    """
    runs = known_runs(server) if among is None else among
    if word is not None:
        place = Path(word).absolute()
        runs = [run for run in runs if word in (run.number, run.path.name) or run.path == place]
    if not runs:
        which = "no run" if word is None else f"no run '{word}'"
        raise FedMoEError(f"{server.path} knows {which}: 'python -m fedmoe_server runs' lists them")
    return runs[-1]


def state_of(server: ServerFolder, run: KnownRun) -> State:
    """Return how a run is doing."""
    run = KnownRun(**read_json(server.submitted / f"{run.number}.json", asdict(run)))  # it may have been stopped by now
    if any(other.folder == run.folder and other.submitted > run.submitted for other in known_runs(server)):
        return State.RESUMED
    log = progress_log(server.clients, run.path)
    if held(log):
        return State.RUNNING
    ended = None if run.ended is None else State(run.ended)
    if not log.exists():
        return ended or State.WAITING
    status = read_result(run.path).status
    if status == "completed":
        return State.COMPLETED
    return ended or (State.FAILED if status == "failed" else State.KILLED)


def how_to_go_on(run_dir: Path) -> str:
    """Return what to do with a run that ended early, "" where it has no checkpoint."""
    if not any((run_dir / CHECKPOINTS).glob("round-*")):
        return ""
    return f"; go on from its last checkpoint with: python -m fedmoe_server run --resume {run_dir}"
