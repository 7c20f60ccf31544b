"""Submitting a run to the server, following it to its end, and stopping it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from fedmoe.deployment.ports import listens, parse_address
from fedmoe.errors import FedMoEError
from fedmoe.files import alone
from fedmoe.loading import settings_from, to_run_config
from fedmoe.settings import Settings
from fedmoe_server.deploy.bundle import RUN_CONFIG, write_bundle
from fedmoe_server.deploy.deployed import held, progress_log
from fedmoe_server.deploy.known_runs import KnownRun, State, how_to_go_on, known_runs, note_end, note_run, state_of
from fedmoe_server.deploy.protection import protected, words_of_simulation
from fedmoe_server.deploy.server_folder import CONNECTION, ServerFolder
from fedmoe_server.report.run_folder import SETTINGS, new_run_dir, read_result, seen_by_the_server
from fedmoe_server.rounds.record import Result

Show = Callable[[str], None]
POLL = 0.5  # seconds between two looks at the run's files
STATUS_POLL = 20.0  # seconds between two questions to the server, each of which starts a process
UNREACHABLE = 120.0  # seconds that the server may be away before the run is given up
BEGIN_SECONDS = 120.0  # that the app of a run has to begin, before another run may
STOP_SECONDS = 90.0  # that the app of a run has to end
FINISHED = "finished"
WORDS = {
    State.COMPLETED: "has completed",
    State.FAILED: "failed",
    State.STOPPED: "was stopped",
    State.KILLED: "was killed, or its server was",
    State.RESUMED: "was resumed by a later run",
}


class RunFailed(Exception):
    """The run has ended without a result; the message says why, and how to go on.

    killed: its app was ended, which says nothing against the run itself.
    """

    def __init__(self, text: str, killed: bool = False) -> None:
        super().__init__(text)
        self.killed = killed


def submit(
    server: ServerFolder,
    settings: Settings,
    resume: Path | None,
    extra: Sequence[str],
    show: Show,
    json_logs: bool = False,
) -> KnownRun:
    """Submit a run. Each has a bundle of its own, so that none sets another's settings.

    resume: a run folder to go on with; its own settings are meant. extra: further options of ``flwr run``. show: called
    with a line where the run has to wait, and with how to simulate it. json_logs: see ``fedmoe.deployment.logs``.

    Raises FedMoEError if the server does not run, or a run in the folder does, and if secure aggregation is asked for
    and cannot be had.
    """
    require_up(server)
    if resume is None:
        settings, sees = protected(settings, server.admitted())
    else:
        sees = seen_by_the_server(resume)  # decided when it began
    run_dir = (resume or new_run_dir(settings, datetime.now())).absolute()
    log = progress_log(server.clients, run_dir)
    if held(log):
        raise FedMoEError(f"the run of {run_dir} is still running: follow it with 'python -m fedmoe_server follow'")
    values = to_run_config(_with_absolute_paths(settings)) | {
        "run_dir": str(run_dir),
        "resume": str(run_dir) if resume else "",
        "clients": str(server.clients.absolute()),
        "simulated": False,
        "sees": sees,
        "json_logs": json_logs,
    }
    assert values.keys() <= RUN_CONFIG.keys()
    with alone(server.path / "submit.lock"), TemporaryDirectory(dir=server.path, prefix="app-") as place:
        _await_beginnings(server, show)
        log.unlink(missing_ok=True)  # of the run before a resume
        app, config = write_bundle(Path(place) / "app"), Path(place) / "run-config.toml"
        # A text in JSON is one in TOML.
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
        answer = server.flwr("run", str(app), CONNECTION, "--run-config", str(config), *extra)
        run = note_run(server, str(answer["run-id"]), run_dir)
    if words := words_of_simulation(settings):
        show(f"a simulation of the same bits has {words}: python sim.py {run_dir / SETTINGS} {words}")
    return run


def _await_beginnings(server: ServerFolder, show: Show) -> None:
    """Return when no run is about to begin, or after a while.

    Flower installs an app at its first run, and would take a folder half written for a whole app if two runs began at
    once.
    """
    deadline = time.monotonic() + BEGIN_SECONDS
    for run in known_runs(server):
        if state_of(server, run) is State.WAITING:
            show(f"run {run.number} is about to begin: waiting for it")
        while asked_state(server, run)[0] is State.WAITING and time.monotonic() < deadline:
            time.sleep(POLL)


def asked_state(server: ServerFolder, run: KnownRun) -> tuple[State, str]:
    """Return how a run is doing, and why it failed; one that waits is asked after at the server."""
    state = state_of(server, run)
    if state is not State.WAITING:
        return state, ""
    status, details = run_status(server, run.number)
    if status.startswith(FINISHED) and state_of(server, run) is State.WAITING:
        note_end(server, run, State.FAILED)
        return State.FAILED, f"the server said '{status}' before it began: {details}"
    return state, ""


def require_up(server: ServerFolder) -> None:
    """Raise FedMoEError if the server does not run."""
    if not listens(*parse_address(server.addresses().control)):
        raise FedMoEError(f"the server of {server.path} does not run: start it with 'python -m fedmoe_server up'")


def _with_absolute_paths(settings: Settings) -> Settings:
    """Return settings whose data files are found from any folder: the server app works in the one of ``up``."""
    tree = settings.model_dump(mode="json")
    sections = [tree["data"], *(modality for modality in tree["modalities"].values() if modality)]
    for section, name in product(sections, ("data_dir", "data_file", "item_id_file", "file")):
        if section.get(name) and Path(section[name]).exists():
            section[name] = str(Path(section[name]).absolute())
    return settings_from(tree)


def follow(server: ServerFolder, run: KnownRun, show: Show) -> Result:
    """Show a run's progress, from its beginning, until it has ended; return its ``result.json``.

    Raises:
        RunFailed: the run failed, was stopped or killed, or the server did not begin with it.
    """
    log = progress_log(server.clients, run.path)
    shown, why, asked, reached = 0, "", time.monotonic(), time.monotonic()
    while not (state := state_of(server, run)).over:
        shown = _show_new(log, shown, show)
        if state is State.WAITING and time.monotonic() - asked > STATUS_POLL:
            try:
                _, why = asked_state(server, run)
                reached = time.monotonic()
            except FedMoEError as error:
                if time.monotonic() - reached > UNREACHABLE:
                    raise RunFailed(f"the server has been away for {UNREACHABLE:.0f} s ({error})") from error
            asked = time.monotonic()
        time.sleep(POLL)
    if state is not State.RESUMED:  # what is in the log by then is the later run's
        _show_new(log, shown, show)
    result = read_result(run.path)
    if state is State.COMPLETED:
        return result
    why = why or (result.error if state is State.FAILED else None) or ""
    text = f"run {run.number} {WORDS[state]}{': ' if why else ''}{why}{how_to_go_on(run.path)}"
    raise RunFailed(text, killed=state is State.KILLED)


def stop_run(server: ServerFolder, run: KnownRun) -> None:
    """Stop a run; return when its app has ended. Raises FedMoEError if it does not run, or goes on."""
    if (state := state_of(server, run)).over:
        raise FedMoEError(f"run {run.number} does not run: it {WORDS[state]}")
    require_up(server)
    server.flwr("stop", run.number, CONNECTION)
    note_end(server, run, State.STOPPED)
    deadline = time.monotonic() + STOP_SECONDS
    while not state_of(server, run).over:
        if time.monotonic() > deadline:
            raise FedMoEError(f"run {run.number} was told to stop, but has not ended after {STOP_SECONDS:.0f} s")
        time.sleep(POLL)


def run_status(server: ServerFolder, run_id: str) -> tuple[str, str]:
    """Return the status of a run at the server, and its details."""
    (run,) = server.flwr("list", CONNECTION, "--run-id", run_id)["runs"]
    return str(run["status"]), str(run["status-details"])


def _show_new(log: Path, shown: int, show: Show) -> int:
    """Show the whole lines of a file after the first ``shown`` bytes; return how many bytes are shown now."""
    try:
        with log.open("rb") as file:
            file.seek(shown)
            text = file.read()
    except FileNotFoundError:
        return shown
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode("utf-8", errors="replace").splitlines():
        show(line)
    return shown + len(whole)
