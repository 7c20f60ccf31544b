"""Train one variant with one seed, and keep each user's rank; what is done already is not done again."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.central import passes
from benchmarks.central_training import CentralPlan, train_centrally
from benchmarks.finished_runs import load_chosen
from benchmarks.variants import Variant
from data.catalogue_folder import fingerprints
from data.registry import Dataset, load_dataset
from fedmoe.loading import settings_from
from fedmoe.settings import EvaluationSettings, Settings
from fedmoe_client.learning.evaluation import Scorer, catalogue_scorer, popularity_scorer, ranks
from fedmoe_client.learning.workbench import Workbench
from fedmoe_server.report.client_ranks import read_client_ranks
from sim import simulate

SAMPLED = EvaluationSettings(protocol="sampled", num_candidates=100)


@dataclass(frozen=True)
class Ranks:
    """Ranks from 1, one a user.

    full, validation: of the test and the validation item among all unseen items, with the server's or central model;
    personal: full with the clients' private parameters, None in a run without clients;
    sampled: of the test item among itself and 100 sampled items.
    """

    full: NDArray[np.float64]
    personal: NDArray[np.float64] | None
    sampled: NDArray[np.float64]
    validation: NDArray[np.float64]


def run(name: str, variant: Variant, base: Settings, seed: int, folder: Path) -> Ranks:
    """Return the ranks of a variant; they are kept in ``folder`` for the next call."""
    label = f"{slug(name)}-{seed}"
    settings = changed(base, variant, seed, folder).model_copy(update={"name": label})
    path = folder / f"{label}.npz"
    dataset = load_dataset(settings.data, settings.seed)
    about = json.dumps(
        {
            "kind": variant.kind,
            "data": fingerprints(dataset) | {"histories": _hash_of(dataset)},
            **({"plan": asdict(CentralPlan(passes(settings)))} if variant.kind == "central" else {}),
            **settings.model_dump(mode="json", exclude={"save_dir", "name"}),
        }
    )
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["about"]) == about:
                return Ranks(kept["full"], kept.get("personal"), kept["sampled"], kept["validation"])
    found = _TRAIN[variant.kind](settings, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: array for name, array in vars(found).items() if array is not None}
    np.savez(path, about=np.array(about), **arrays)
    return found


def changed(base: Settings, variant: Variant, seed: int, folder: Path) -> Settings:
    """Return the base settings with a variant's changes and a seed."""
    tree: dict[str, Any] = base.model_dump(mode="json")
    for key, value in variant.changes.items():
        section, leaf = key.split(".")
        if value == "noise" and tree[section][leaf] is None:
            continue  # noise takes the place of features; it is none of its own
        tree[section][leaf] = value
    return settings_from({**tree, "seed": seed, "save_dir": str(folder / "runs")})


def _hash_of(dataset: Dataset) -> str:
    """Return a hash of all histories."""
    found = dataset.interactions
    return sha256(found.items.tobytes() + found.offsets.tobytes()).hexdigest()[:16]


def slug(name: str) -> str:
    """Return a name as a file's."""
    return re.sub(r"[^\w+]+", "-", name)


def _popularity(settings: Settings, dataset: Dataset) -> Ranks:
    return _ranked(popularity_scorer(dataset.interactions), settings, dataset)


def _central(settings: Settings, dataset: Dataset) -> Ranks:
    model, _ = train_centrally(settings, dataset, CentralPlan(passes(settings)), progress=partial(print, flush=True))
    return _ranked(catalogue_scorer(model), settings, dataset)


def _federated(settings: Settings, dataset: Dataset) -> Ranks:
    run_dir = simulate(settings)
    bench = Workbench(settings, dataset)
    load_chosen(bench, run_dir)
    found = _ranked(catalogue_scorer(bench.model), settings, dataset)
    clients = [rank for rank in read_client_ranks(run_dir) if rank.split == "test"]
    return Ranks(found.full, np.array([rank.personal for rank in clients]), found.sampled, found.validation)


_TRAIN = {"popularity": _popularity, "central": _central, "federated": _federated}


def _ranked(scorer: Scorer, settings: Settings, dataset: Dataset) -> Ranks:
    users = np.arange(dataset.interactions.num_users)
    length = max(settings.model.max_seq_len, settings.model.memory_size)
    interactions, full = dataset.interactions, settings.evaluation
    return Ranks(
        ranks(scorer, interactions, users, "test", full, settings.seed, length),
        None,
        # The candidates are the same for every seed of the training.
        ranks(scorer, interactions, users, "test", SAMPLED, 0, length),
        ranks(scorer, interactions, users, "validation", full, settings.seed, length),
    )
