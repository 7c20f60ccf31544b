"""One cell of the attack benchmark: a federated run with bad clients and a defence, measured on the server's model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attack_clients import Attack
from benchmarks.attack_measures import exposure
from benchmarks.finished_runs import load_chosen
from benchmarks.quality_runs import slug
from data.registry import Dataset, load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import settings_from, to_run_config
from fedmoe.settings import Settings
from fedmoe_client.learning.evaluation import catalogue_scorer, ranks
from fedmoe_client.learning.workbench import Workbench
from fedmoe_server.app import app as server_app
from fedmoe_server.report.run_folder import RESULT
from simulation.engines import run_simulation

CLIENT_APP = "benchmarks.attack_clients:app"


@dataclass(frozen=True)
class Outcome:
    """HR@10 on test over all users, and ER@10 of the target over those who never met it; both 0 to 1.

    refused: replies that were refused or failed. error: why the run has no model; then the figures are 0.
    """

    hit_rate: float = 0.0
    exposure: float = 0.0
    refused: int = 0
    error: str = ""


def changed(base: Settings, changes: Mapping[str, Any], seed: int, folder: Path, name: str) -> Settings:
    """Return the base settings with changes by their full keys, and a seed."""
    tree: dict[str, Any] = base.model_dump(mode="json")
    for key, value in changes.items():
        section, leaf = key.split(".")
        tree[section][leaf] = value
    return settings_from({**tree, "seed": seed, "save_dir": str(folder), "name": slug(name)})


def run(settings: Settings, attack: Attack) -> Outcome:
    """Return what becomes of a run under an attack; kept in the run folder, and not done again where it is."""
    run_dir = settings.save_dir / settings.name
    kept, about = run_dir / "outcome.json", json.dumps([settings.model_dump(mode="json"), attack.model_dump()])
    if kept.is_file():
        document = json.loads(kept.read_text(encoding="utf-8"))
        if document["about"] == about:
            return Outcome(**document["outcome"])
    dataset = load_dataset(settings.data, settings.seed)
    _remove(run_dir)
    run_config: dict[str, Any] = {
        **to_run_config(settings),
        "run_dir": str(run_dir),
        "resume": "",
        "attack": attack.model_dump_json(),
    }
    users, simulation = dataset.interactions.num_users, settings.simulation
    try:
        run_simulation(simulation.engine, server_app, CLIENT_APP, users, run_config, simulation)
        outcome = _measured(settings, dataset, run_dir, attack)
    except FedMoEError as error:
        outcome = Outcome(error=str(error))
    run_dir.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"about": about, "outcome": asdict(outcome)}, indent=1), encoding="utf-8")
    return outcome


def model_of(settings: Settings, dataset: Dataset, run_dir: Path) -> Workbench:
    """Return the server's model of a completed run."""
    bench = Workbench(settings, dataset)
    load_chosen(bench, run_dir)
    return bench


def _measured(settings: Settings, dataset: Dataset, run_dir: Path, attack: Attack) -> Outcome:
    bench = model_of(settings, dataset, run_dir)
    interactions, users = dataset.interactions, np.arange(dataset.interactions.num_users)
    length = max(settings.model.max_seq_len, settings.model.memory_size)
    scorer = catalogue_scorer(bench.model)
    found = ranks(scorer, interactions, users, "test", settings.evaluation, settings.seed, length)
    # The bad clients' own screens are of no interest to anybody.
    honest = np.setdiff1d(users, np.array(attack.clients, np.int64))
    shown = exposure(scorer, interactions, honest, attack.target, length)
    refused = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))["failed_replies"]
    return Outcome(float((found <= 10).mean()), shown, int(refused))


def _remove(run_dir: Path) -> None:
    """Move an earlier run out of the way: nothing is deleted."""
    if run_dir.exists():
        number = 1
        while (old := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
            number += 1
        run_dir.rename(old)
