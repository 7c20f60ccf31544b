"""The plan of a simulated run: everything that can be checked before it begins, and what it will take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from data.dataset import Dataset
from data.registry import load_dataset
from fedmoe.settings import Settings
from fedmoe_server.planning.defaults import Size, cohort_of, hopeless, passes, trained_windows, with_defaults
from fedmoe_server.planning.effects import without_effect

# Milliseconds of one core, from the default job and docs/performance.md; only the order of magnitude carries over.
WINDOW_MS = {"vectorized": 2.6, "ray": 5.3, "flower": 21.0}  # a window of 50 positions, one expert, dimension 64
BACKBONE, CONTENT = 0.35, 0.4  # what training without experts, and content in item vectors, take of an expert's time
RANKING_MS = 5.0  # of a catalogue of 4,000 items, once
ROUND_MS = 60.0  # the server's part
START_SECONDS = 15.0
PATHS = ("data_dir", "data_file", "item_file", "item_id_file")  # of `data`


def plan(settings: Settings, check: Callable[[Settings], None]) -> Settings:
    """Read and check what a run needs, print how the data was read and what the run will do, and return its settings.

    Settings that were not given are chosen for the run's size. check: raises FedMoEError for what the clients cannot
    make of the settings.

    Raises FedMoEError for what would end the run.
    """
    # Torch and Flower take seconds to import: not for --help, nor for a misspelt key.
    from fedmoe_server.report.trackers import check_trackers
    from model.build import initial_arrays
    from strategies import build_strategy

    useless = without_effect(settings)
    settings = located(settings)
    check(settings)
    check_trackers(settings)
    build_strategy(settings.federation.strategy, settings.federation.strategy_parameters)
    dataset = load_dataset(settings)
    size = size_of(settings, dataset)
    settings = with_defaults(settings, size)
    model_bytes = sum(array.nbytes for array in initial_arrays(settings, dataset).values())
    if dataset.reading:
        print(dataset.reading)
    print("\n".join(plan_lines(settings, size, list(dataset.features), model_bytes)))
    for reason in [*useless, *hopeless(settings)]:
        print(f"warning: {reason}", file=sys.stderr)
    return settings


def located(settings: Settings) -> Settings:
    """Return the settings with the paths of files that exist made absolute: they then mean the same in every process.

    A Ray cluster that a run joins has working folders of its own. Names inside ``data.data_dir`` stay as they are.
    """

    def whole(path: Path | None) -> Path | None:
        return path if path is None or not path.exists() else path.absolute()

    data, modalities = settings.data, dict(settings.modalities)
    for name, own in settings.named_modalities.items():
        found = {
            "file": own.file if own.path is None else str(whole(own.path)),
            "item_id_file": whole(own.item_id_file),
        }
        modalities[name] = own.model_copy(update=found)
    data = data.model_copy(update={key: whole(getattr(data, key)) for key in PATHS})
    return settings.model_copy(update={"data": data, "modalities": modalities})


def size_of(settings: Settings, dataset: Dataset) -> Size:
    """Return the size of a data set."""
    histories = dataset.interactions
    return Size.of(histories.offsets, histories.num_items, settings.model.max_seq_len)


def plan_lines(settings: Settings, size: Size, modalities: list[str], model_bytes: int) -> list[str]:
    """Return the plan in words."""
    from fedmoe_server.report.progress import duration

    federation, training = settings.federation, settings.training
    cohort = cohort_of(settings, size)
    trainings = cohort * federation.num_rounds
    experts = ", ".join(modalities) if settings.model.mixture and modalities else "none"
    rate = federation.strategy_parameters.get("eta")
    server = federation.strategy + ("" if rate is None else f" with learning rate {rate:g}")
    evaluated = federation.evaluate_clients or size.users
    times = federation.num_rounds // federation.evaluate_every if federation.evaluate_every else 0
    seconds = expected_seconds(settings, size, len(modalities))
    return [
        f"plan: {federation.num_rounds} rounds of {cohort} of {size.users} clients, {server}; experts: {experts}",
        f"  a client trains {trained_windows(settings, size):.1f} windows a round (its history has "
        f"{size.windows.mean():.1f}, local epochs {training.local_epochs}): {passes(settings, size):.1f} passes over "
        "the data",
        f"  evaluated {times} times on {min(evaluated, size.users)} users, on test items at the end, on all",
        f"  about {duration(seconds)} on {_cores(settings)} idle cores with engine {settings.simulation.engine}; "
        f"{trainings * model_bytes / 1e9:.2g} GB to clients, at most as much back",
    ]


def expected_seconds(settings: Settings, size: Size, experts: int) -> float:
    """Return about how long a run takes on an idle machine."""
    federation, model = settings.federation, settings.model
    cohort = cohort_of(settings, size)
    parts = BACKBONE + (1 - BACKBONE) * experts + CONTENT * (model.item_representation != "id" and experts > 0)
    work = model.max_seq_len / 50 * model.dim / 64 * parts
    windows = federation.num_rounds * cohort * trained_windows(settings, size)
    times = federation.num_rounds // federation.evaluate_every if federation.evaluate_every else 0
    rankings = 2 * (times + 1) * (federation.evaluate_clients or size.users) + 2 * size.users
    among = size.items if settings.evaluation.protocol == "full" else settings.evaluation.num_candidates
    spent = windows * WINDOW_MS[settings.simulation.engine] * work + rankings * RANKING_MS * (0.5 + among / 8000)
    return START_SECONDS + (spent / _cores(settings) + federation.num_rounds * ROUND_MS) / 1000


def _cores(settings: Settings) -> int:
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(known, settings.simulation.hosts or known)
