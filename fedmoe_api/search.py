"""Searching over settings: trials with drawn settings, what they reach in a table, and what won as a config file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from fedmoe.errors import FedMoEError
from fedmoe.execution_settings import SearchSettings
from fedmoe.files import write_file
from fedmoe.loading import SEARCH, Points
from fedmoe.settings import Settings
from fedmoe_api.simulation import federate, planned
from fedmoe_server.report.sweep import write_summary
from fedmoe_server.rounds.halting import Halt

if TYPE_CHECKING:
    from fedmoe_server.report.run_folder import Run
    from fedmoe_server.rounds.record import RoundRecord
    from simulation.ray.tuning import Report


def run_search(points: Points, search: SearchSettings, resume: Path | None = None) -> Path:
    """Run the trials, write ``search.md`` and ``best.yaml`` beside their run folders, and return the search's folder.

    resume: the folder of a search to go on with; None: a new one, ``save_dir/<time>-<name>``.

    Raises KeyboardInterrupt, with what is there written, where Ctrl-C has stopped the search, and FedMoEError if a
    trial cannot work, or all have failed.
    """
    from fedmoe_server.report.run_folder import new_run_dir
    from simulation.ray.tuning import run_trials

    trials = [_trial(label, settings) for label, settings in points.settings.items()]
    folder = (resume or new_run_dir(trials[0], datetime.now())).absolute()
    write_file(folder / SEARCH, yaml.safe_dump(points.tree, sort_keys=False).encode())
    runs = {number: _begun(folder, number) for number in range(1, len(trials) + 1)}
    ended = {n: None if run is None or run.result.status == "unfinished" else _scores(run) for n, run in runs.items()}
    rounds = max(trial.federation.num_rounds for trial in trials)
    run = partial(run_trial, trials, folder)
    done = None not in ended.values() or run_trials(run, ended, rounds, search, trials[0].simulation, folder)
    best = _write_results(folder, points.settings, trials[0].name)
    if not done:
        print(f"search: stopped; go on with --resume {folder}")
        raise KeyboardInterrupt
    if best is None:
        raise FedMoEError(f"no trial has completed: see result.json in the run folders in {folder}")
    print(f"search: {folder / 'search.md'}\nbest, {best}: python sim.py {folder / 'best.yaml'}")
    return folder


def run_trial(trials: Sequence[Settings], folder: Path, number: int, report: Report) -> None:
    """Run a trial, or go on with it. number: from 1 on."""

    def judged(record: RoundRecord) -> Halt | None:
        return Halt.STOP if report(record.round, _score(record)) else None

    begun = _begun(folder, number)
    for after, score in [] if begun is None else _scores(begun):
        report(after, score)
    settings = trials[number - 1].model_copy(update={"save_dir": folder, "name": f"trial-{number}"})
    federate(settings, None if begun is None else begun.folder, [judged])


def _trial(label: str, settings: Settings) -> Settings:
    """Return the settings of a trial as they are run; raises FedMoEError for what would end it, or the search."""
    simulation = settings.simulation
    if simulation.engine == "flower":
        raise FedMoEError("simulation.engine flower takes all CPUs for one trial: set vectorized or ray")
    print(label)
    hosts = simulation.model_copy(update={"hosts": simulation.hosts or 1})
    settings = planned(settings.model_copy(update={"simulation": hosts}))
    if not settings.federation.evaluate_every:
        raise FedMoEError("federation.evaluate_every 0 leaves a search nothing to compare: set it, or leave it out")
    return settings


def _begun(folder: Path, number: int) -> Run | None:
    """Return the run of a trial, None before its first round."""
    from fedmoe_server.report.run_folder import METRICS, read_run

    return next((read_run(path.parent) for path in folder.glob(f"*-trial-{number}/{METRICS}")), None)


def _score(record: RoundRecord) -> float | None:
    return (record.validation or {}).get("ndcg@10")


def _scores(run: Run) -> list[tuple[int, float]]:
    return [(record.round, score) for record in run.records if (score := _score(record)) is not None]


def _write_results(folder: Path, points: Mapping[str, Settings], name: str) -> str | None:
    """Write what the completed trials have reached, the best ones first; return the label of the best one."""
    runs = {label: _begun(folder, number) for number, label in enumerate(points, start=1)}
    completed = {label: run for label, run in runs.items() if run is not None and run.result.status == "completed"}
    if not completed:
        return None
    scores = {label: run.result.validation["personalised"]["ndcg@10"] or 0.0 for label, run in completed.items()}
    best, *others = sorted(scores, key=lambda label: -scores[label])
    write_summary(folder, name, {label: completed[label].folder for label in [best, *others]}, "search")
    note = f"# {best}; validation NDCG@10 {scores[best]:.4f}, the best of {len(scores)} trials.\n"
    won = yaml.safe_dump(points[best].model_dump(mode="json", exclude_unset=True), sort_keys=False)
    write_file(folder / "best.yaml", (note + won).encode())
    return best
