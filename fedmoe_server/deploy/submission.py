"""Submitting a run to the server and following it to its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import product
from pathlib import Path

from fedmoe.deployment.ports import listens, parse_address
from fedmoe.errors import FedMoEError
from fedmoe.loading import settings_from, to_run_config
from fedmoe.settings import Settings
from fedmoe_server.deploy.bundle import RUN_CONFIG, write_bundle
from fedmoe_server.deploy.deployed import progress_log
from fedmoe_server.deploy.server_folder import CONNECTION, ServerFolder
from fedmoe_server.report.run_folder import CHECKPOINTS, RESULT, new_run_dir, read_result
from fedmoe_server.rounds.record import Result

Show = Callable[[str], None]
POLL = 0.5  # seconds between two looks at the run's files
STATUS_POLL = 20.0  # seconds between two questions to the server, each of which starts a process
UNREACHABLE = 120.0  # seconds that the server may be away before the run is given up
FINISHED = "finished"
COMPLETED = "finished:completed"


class RunFailed(Exception):
    """The run has ended without a result; the message says why, and how to go on."""


def submit(folder: ServerFolder, settings: Settings, resume: Path | None, extra: Sequence[str]) -> tuple[str, Path]:
    """Submit a run; return its id at the server and its run folder.

    resume: a run folder to go on with; its own settings are meant. extra: further options of ``flwr run``.
    """
    host, port = parse_address(folder.addresses().control)
    if not listens(host, port):
        raise FedMoEError(f"the server of {folder.path} does not run: start it with 'python -m fedmoe_server up'")
    run_dir = (resume or new_run_dir(settings, datetime.now())).absolute()
    values = to_run_config(_with_absolute_paths(settings)) | {
        "run_dir": str(run_dir),
        "resume": str(run_dir) if resume else "",
        "clients": str(folder.clients.absolute()),
        "simulated": False,
    }
    assert values.keys() <= RUN_CONFIG.keys()
    config = folder.path / "run-config.toml"
    # A text in JSON is one in TOML.
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    progress_log(folder.clients, run_dir).unlink(missing_ok=True)
    app = write_bundle(folder.bundle)
    answer = folder.flwr("run", str(app), CONNECTION, "--run-config", str(config), *extra)
    return str(answer["run-id"]), run_dir


def _with_absolute_paths(settings: Settings) -> Settings:
    """Return settings whose data files are found from any folder: the server app works in the one of ``up``."""
    tree = settings.model_dump(mode="json")
    sections = [tree["data"], *(modality for modality in tree["modalities"].values() if modality)]
    for section, name in product(sections, ("data_dir", "data_file", "item_id_file", "file")):
        if section.get(name) and Path(section[name]).exists():
            section[name] = str(Path(section[name]).absolute())
    return settings_from(tree)


def follow(folder: ServerFolder, run_id: str, run_dir: Path, show: Show) -> Result:
    """Show a run's progress until it has ended; return its ``result.json``.

    Raises:
        RunFailed: the run failed, or the server did not come back.
    """
    log = progress_log(folder.clients, run_dir)
    shown, asked, reached = 0, time.monotonic(), time.monotonic()
    status, details = "", ""
    while not status.startswith(FINISHED):
        shown = _show_new(log, shown, show)
        ended = (run_dir / RESULT).exists()  # the server app removes the one of a run that it resumes
        if time.monotonic() - asked > (2.0 if ended else STATUS_POLL):
            try:
                status, details = run_status(folder, run_id)
                reached = time.monotonic()
            except FedMoEError as error:
                if time.monotonic() - reached > UNREACHABLE:
                    raise RunFailed(f"the server has been away for {UNREACHABLE:.0f} s ({error})") from error
            asked = time.monotonic()
        time.sleep(POLL)
    _show_new(log, shown, show)
    result = read_result(run_dir)
    if status != COMPLETED or result.status != "completed":
        reason = result.error or details or status
        raise RunFailed(f"run {run_id} ended as '{status}': {reason}{_how_to_go_on(run_dir)}")
    return result


def run_status(folder: ServerFolder, run_id: str) -> tuple[str, str]:
    """Return the true status of a run at the server, and its details."""
    (run,) = folder.flwr("list", CONNECTION, "--run-id", run_id)["runs"]
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


def _how_to_go_on(run_dir: Path) -> str:
    if not any((run_dir / CHECKPOINTS).glob("round-*")):
        return ""
    return f"; go on from its last checkpoint with: python -m fedmoe_server run --resume {run_dir}"
