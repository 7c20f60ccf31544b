"""The process that runs a plan on one of this project's engines: its real apps and round loop, timed round by round."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from benchmarks.speed.report import Report, given_plan
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import to_run_config
from fedmoe.settings import Settings
from fedmoe_server.app import aggregation_schedule, layered_strategy
from fedmoe_server.report.tracking import Tracker
from fedmoe_server.rounds.checkpoints import CheckpointStore
from fedmoe_server.rounds.clients import ClientDirectory
from fedmoe_server.rounds.exchange import ReducingGrid
from fedmoe_server.rounds.loop import ServerLoop
from fedmoe_server.rounds.record import LoopState, list_arrays, list_failures
from model.build import initial_arrays, parameter_groups
from sim import execute


def main() -> None:
    """Run a plan's rounds."""
    settings, rounds, _ = given_plan()
    histories = load_dataset(settings).interactions
    report = Report()
    app = ServerApp()

    @app.main()
    def server(grid: Grid, context: Context) -> None:
        with tempfile.TemporaryDirectory() as folder:
            _run(grid, settings, rounds, Path(folder), report)

    execute(settings, app, histories, {**to_run_config(settings)})
    report.write()


def _run(grid: Grid, settings: Settings, rounds: int, folder: Path, report: Report) -> None:
    """Do rounds as ``fedmoe_server.app`` does. FedMoEError: a client failed, so the time is worth nothing."""
    dataset = load_dataset(settings)
    schedule = aggregation_schedule(settings, parameter_groups(settings, dataset))
    directory = ClientDirectory()
    reducing = isinstance(grid, ReducingGrid)
    strategy, partial, _ = layered_strategy(settings, schedule, directory, deployed=False, reducing=reducing)
    state = LoopState(list_arrays(initial_arrays(settings, dataset)))
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        tracker, store = Tracker(folder, settings, (), Console(file=nowhere)), CheckpointStore(folder / "checkpoints")
        loop = ServerLoop(grid, strategy, partial, schedule, settings, directory, tracker, store)
        for _ in range(rounds):
            begun = time.time()
            record = loop.one_round(state)
            ended = time.time()
            if record.failed:
                raise FedMoEError(f"round {record.round}: {list_failures(record.failed)}")
            report.add(begun, ended, record.bytes_down, record.bytes_up)
        tracker.close()


if __name__ == "__main__":
    main()
