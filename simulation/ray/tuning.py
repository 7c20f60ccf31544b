"""Trials of a search under Ray Tune: side by side on one Ray, the worse ones stopped early by ASHA, resumable."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import current_thread, main_thread
from types import SimpleNamespace
from typing import Any

import ray

from fedmoe.errors import FedMoEError
from fedmoe.execution_settings import SearchSettings, SimulationSettings
from simulation.ray.cluster import number_of_hosts, start_ray, worker_environment

try:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
except ImportError as error:
    raise FedMoEError("a search needs Ray Tune: pip install 'fedmoe[tune]'") from error

Report = Callable[[int, float | None], bool]
"""Called after each round, with its number and the score, if there is one; returns whether the trial is to end."""
Scores = Iterable[tuple[int, float]]
"""Rounds, and the scores after them."""
TUNE = "tune"  # in a search's folder: what Tune writes, and who is to end


def run_trials(
    run: Callable[[int, Report], None],
    trials: Mapping[int, Scores | None],
    rounds: int,
    search: SearchSettings,
    resources: SimulationSettings,
    folder: Path,
) -> bool:
    """Run the trials that have not ended yet; return False if Ctrl-C came before all had.

    Args:
        run: runs the trial of a number and tells its scores, of which larger ones are better; those too that it had
            before it was interrupted. It is called in another process.
        trials: by number, the scores of those that have ended, with which the others are compared, and None for others.
        rounds: the most rounds of a trial.
        resources: of each trial; its hosts count, and nothing else takes CPUs.
        folder: of the search, an absolute path.

    A trial that raises has ended. Raises FedMoEError if no trial fits on the cluster.
    """
    state, grace = folder / TUNE, search.grace_rounds or max(1, rounds // 8)
    state.mkdir(exist_ok=True)
    halving = _Halving(state, max_t=max(rounds, grace + 1), grace_period=grace, reduction_factor=search.reduction)
    # Tune's own restore forgets what ASHA knew: here it is told again.
    for number, scores in trials.items():
        halving.remember(number, scores or ())
    waiting = [number for number, scores in trials.items() if scores is None]

    def trial(config: dict[str, Any]) -> None:
        number = int(config["trial"])

        def report(after: int, score: float | None) -> bool:
            if score is not None:
                tune.report({"round": after, "score": score})  # returns when the scheduler has judged it
            verdict = _verdict(state, number)
            return verdict.exists() and after >= int(verdict.read_text())

        run(number, report)

    # The trial's own process waits most of the time. If it held a CPU, its hosts might wait for that one for ever.
    host = {"CPU": resources.client_cpus, "GPU": resources.client_gpus}
    needs = tune.PlacementGroupFactory([{}] + [host] * resources.hosts)
    # A trial stays in this working folder and writes into its run folder alone; Tune writes neither logs nor tables.
    os.environ.update(RAY_CHDIR_TO_TRIAL_DIR="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0")
    interrupt = signal.getsignal(signal.SIGINT)
    owns_ray = start_ray(resources.ray_address, worker_environment(resources))
    try:
        number_of_hosts(resources, resources.hosts)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        tune.Tuner(
            tune.with_resources(trial, needs),
            param_space={"trial": tune.grid_search(waiting)},
            tune_config=tune.TuneConfig(scheduler=halving, max_concurrent_trials=search.at_once or None),
            run_config=tune.RunConfig(storage_path=str(state), verbose=0),
        ).fit()
        return halving.ended == set(waiting)
    finally:
        if current_thread() is main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Tune leaves its own behind
        if owns_ray:
            ray.shutdown()


class _Halving(ASHAScheduler):
    """ASHA that leaves a trial the time to evaluate its best model: it is told to end, and ends itself."""

    def __init__(self, state: Path, **how: Any) -> None:
        super().__init__(time_attr="round", metric="score", mode="max", stop_last_trials=False, **how)
        self.ended: set[int] = set()
        self._state = state

    def remember(self, number: int, scores: Scores) -> None:
        """Take note of a trial of an earlier call."""
        trial: Any = SimpleNamespace(trial_id=f"trial {number}")
        controller: Any = None
        self.on_trial_add(controller, trial)
        for after, score in scores:
            super().on_trial_result(controller, trial, {"round": after, "score": score})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Judge a trial's score and show it."""
        number = trial.config["trial"]
        stop = super().on_trial_result(tune_controller, trial, result) == self.STOP
        if stop:
            _verdict(self._state, number).write_text(str(result["round"]))
        print(f"trial {number}, round {result['round']}: {result['score']:.4f}{', stopped early' if stop else ''}")
        return str(self.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Count a trial that has done its rounds, or has ended itself."""
        self.ended.add(trial.config["trial"])

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Count a trial that has raised."""
        self.ended.add(trial.config["trial"])
        print(f"trial {trial.config['trial']} failed")


def _verdict(state: Path, number: int) -> Path:
    """Return the file that says after which round a trial is to end."""
    return state / f"trial-{number}-is-to-end"
