"""The process that runs a plan on one of this project's engines: its real apps, timed round by round."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress

from benchmarks.speed.work import Report, given_plan
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import to_run_config
from fedmoe_api.simulation import execute
from fedmoe_server.app import app
from fedmoe_server.rounds.loop import ServerLoop
from fedmoe_server.rounds.record import LoopState, RoundRecord, list_failures


class _EnoughError(Exception):
    """All rounds of the plan are done; those that the settings ask for beyond them are not wanted."""


def main() -> None:
    """Run a plan's rounds."""
    settings, rounds, _ = given_plan()
    histories = load_dataset(settings).interactions
    one_round, report = ServerLoop.one_round, Report()

    def timed(loop: ServerLoop, state: LoopState) -> RoundRecord:
        begun = time.time()
        record = one_round(loop, state)
        ended = time.time()
        if record.failed:  # the time is worth nothing
            raise FedMoEError(f"round {record.round}: {list_failures(record.failed)}")
        report.add(begun, ended, record.bytes_down, record.bytes_up)
        if record.round == rounds:
            raise _EnoughError
        return record

    ServerLoop.one_round = timed  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as folder, suppress(_EnoughError):
        execute(settings, app, histories, {**to_run_config(settings), "run_dir": folder})
    report.write()


if __name__ == "__main__":
    main()
