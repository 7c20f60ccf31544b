"""``python -m benchmarks.central [RUN_DIR]``: the model of a federated run, trained centrally for as many passes.

Without a run folder it takes the latest one in ``runs``. It prints popularity, the central model and the federated one
side by side, and adds the central figures to the run's report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.central_training import CentralPlan, train_centrally
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import read_yaml, settings_from
from fedmoe.settings import Settings
from fedmoe_server.report.report import comparison, write_report
from fedmoe_server.report.run_folder import add_baseline


def main(words: Sequence[str]) -> int:
    """Train, print the table and write the run's report again; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.central", description=__doc__.split("\n\n")[0])
    parser.add_argument("run_dir", nargs="?", type=Path, help="folder of a completed run; default: the latest in runs/")
    parser.add_argument("--epochs", type=int, help="passes over the data; default: those of the federated run")
    parser.add_argument("--batch_size", type=int, default=CentralPlan.batch_size, help="windows of a step")
    parser.add_argument("--learning_rate", type=float, default=CentralPlan.learning_rate, help="Adam's")
    given = parser.parse_args(words)
    try:
        run_dir = given.run_dir or latest_run(Path("runs"))
        settings = settings_from(read_yaml(str(run_dir / "settings.yaml")))
        comparison(run_dir)  # a run that has not completed is refused before the training, not after
        plan = CentralPlan(given.epochs or passes(settings), given.batch_size, given.learning_rate)
        print(f"{run_dir}: {plan.epochs} epochs of batches of {plan.batch_size} windows")
        _, central = train_centrally(settings, load_dataset(settings.data, settings.seed), plan, print)
        add_baseline(run_dir, "central", central)
        print(comparison(run_dir))
        print(f"report: {write_report(run_dir)}")
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def passes(settings: Settings) -> int:
    """Return how often each user takes part in the planned rounds, at least once; it may train a few windows then."""
    federation = settings.federation
    return max(1, round(federation.num_rounds * federation.client_fraction * settings.training.local_epochs))


def latest_run(folder: Path) -> Path:
    """Return the latest completed run in a folder."""
    completed = sorted(path.parent for path in folder.glob("*/result.json"))
    if not completed:
        raise FedMoEError(f"{folder} holds no completed run: name a run folder, or run python sim.py first")
    return completed[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
