"""The process that runs a plan on one of this project's engines: its real apps and round loop, timed round by round."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from benchmarks.engine_report import Report, Round, phase_of_rounds, plan_and_place
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
from fedmoe_server.rounds.record import LoopState, list_arrays
from model.build import initial_arrays, parameter_groups
from sim import execute


def main(words: Sequence[str]) -> None:
    """Run a plan's rounds. Raises FedMoEError if a client failed: its time would be worth nothing."""
    settings, phases, _, place = plan_and_place(words)
    histories = load_dataset(settings.data, settings.seed).interactions
    report = Report()
    app = ServerApp()

    @app.main()
    def server(grid: Grid, context: Context) -> None:
        with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            loop, state = make_loop(grid, settings, Path(folder), Console(file=nowhere))
            try:
                for phase, clients in phase_of_rounds(phases):
                    loop.strategy.fraction = min(1.0, clients / histories.num_users)
                    report.rounds.append(one_round(loop, state, phase))
            finally:
                loop.tracker.close()

    execute(settings, app, histories, {**to_run_config(settings)})
    report.write(place)


def make_loop(grid: Grid, settings: Settings, folder: Path, console: Console) -> tuple[ServerLoop, LoopState]:
    """Return the round loop and the state before its first round, as ``fedmoe_server.app`` makes them."""
    dataset = load_dataset(settings.data, settings.seed)
    schedule = aggregation_schedule(settings, parameter_groups(settings, dataset))
    directory = ClientDirectory()
    strategy, partial, _ = layered_strategy(
        settings, schedule, directory, deployed=False, reducing=isinstance(grid, ReducingGrid)
    )
    tracker = Tracker(folder, settings, (), console)
    store = CheckpointStore(folder / "checkpoints")
    loop = ServerLoop(grid, strategy, partial, schedule, settings, directory, tracker, store)
    return loop, LoopState(list_arrays(initial_arrays(settings, dataset)))


def one_round(loop: ServerLoop, state: LoopState, phase: int) -> Round:
    """Do one round and return it. Raises FedMoEError if a client failed."""
    begun = time.time()
    record = loop.one_round(state)
    ended = time.time()
    if record.failed:
        raise FedMoEError(f"round {record.round}: {len(record.failed)} clients failed: {record.failed[0]}")
    return Round(phase, record.clients, begun, ended, record.bytes_down, record.bytes_up)


if __name__ == "__main__":
    main(sys.argv[1:])
