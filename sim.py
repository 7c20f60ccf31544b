"""Simulate a federation: ``python sim.py [CONFIG] [key=value ...] [--flag value ...] [--dry-run]``; ``--help``."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.errors import FedMoEError
from fedmoe.help import help_text
from fedmoe.loading import load_points, settings_of_run, to_run_config
from fedmoe.settings import Settings
from fedmoe_server.planning.plan import plan
from fedmoe_server.report.sweep import run_sweep

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

    from data.sampling import Interactions

CLIENT_APP = "fedmoe_client.app:app"
STACKED = "fedmoe_client.stacked.app:train"  # what the vectorized engine calls


def main(words: list[str]) -> int:
    """Run what the command line asks for; return the exit status: 0 done, 2 something for the user to put right."""
    try:
        if {"--help", "-h"} & set(words):
            print(help_text([word for word in words if not word.startswith("-")]))
            return 0
        dry, words = "--dry-run" in words, [word for word in words if word != "--dry-run"]
        resume, words = _resume_folder(words)
        points, warnings = load_points(words) if resume is None else ({"": settings_of_run(resume, words)}, [])
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        from fedmoe_client.learning.own_client import check_components  # torch takes seconds to import

        if dry:
            for point in points.values():
                plan(point, check_components)
        elif list(points) == [""]:
            simulate(plan(points[""], check_components), resume)
        else:
            run_sweep(points, lambda point: simulate(plan(point, check_components)))
        return 0
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on with --resume and the run's folder", file=sys.stderr)
        return 130


def simulate(settings: Settings, resume: Path | None = None) -> Path:
    """Run a federation on this machine, print it beside popularity, and return its run folder."""
    # Torch, Ray and Flower take seconds to import: not for --help, nor for a misspelt key.
    from data.registry import load_dataset
    from fedmoe_client.learning.new_items import untrained_metrics
    from fedmoe_server.app import app as server_app
    from fedmoe_server.report.report import comparison, write_report
    from fedmoe_server.report.run_folder import add_baseline, new_run_dir, removed_if_empty

    dataset = load_dataset(settings)
    run_dir = resume or new_run_dir(settings, datetime.now())
    run_config: dict[str, Any] = {**to_run_config(settings), "run_dir": str(run_dir), "resume": str(resume or "")}
    with removed_if_empty(run_dir):
        execute(settings, server_app, dataset.interactions, run_config)
    for name, found in untrained_metrics(dataset, settings).items():
        add_baseline(run_dir, name, found)
    print(comparison(run_dir))
    print(f"report: {write_report(run_dir)}")
    return run_dir


def execute(settings: Settings, server: ServerApp, histories: Interactions, run_config: dict[str, Any]) -> None:
    """Run a ServerApp on the engine of the settings; each user of the histories is a simulated client."""
    from data.sampling import items_of_a_round
    from simulation.engines import run_simulation

    resources, training = settings.simulation, settings.training
    loads = items_of_a_round(histories.offsets, settings.model.max_seq_len, training.windows, training.max_windows)
    users, run_config = histories.num_users, {**run_config, "simulated": True}
    run_simulation(resources.engine, server, CLIENT_APP, users, run_config, resources, loads, STACKED)


def _resume_folder(words: list[str]) -> tuple[Path | None, list[str]]:
    """Return the folder after ``--resume``, if it is there, and the other words."""
    if "--resume" not in words:
        return None, words
    at = words.index("--resume")
    if at + 1 == len(words):
        raise FedMoEError("--resume needs the folder of the run to go on with")
    return Path(words[at + 1]), words[:at] + words[at + 2 :]


if __name__ == "__main__":
    sys.path.append(str(Path.cwd()))  # a strategy of the user's own may lie in the folder that the command is run in
    sys.exit(main(sys.argv[1:]))
