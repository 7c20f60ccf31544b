"""What is compared: attacks and defences in a shortened job; and one such run, measured on the server's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks.clients import Attack
from benchmarks.runs import Kept, changed, context_length, ranks_of, slug, strategy
from data.registry import load_dataset
from data.sampling import Interactions, generator
from fedmoe.errors import FedMoEError
from fedmoe.loading import to_run_config
from fedmoe.settings import EvaluationSettings, Settings
from fedmoe_api.chosen import load_chosen
from fedmoe_client.learning.evaluation import Histories, Scorer, catalogue_scorer, ranks
from fedmoe_server.app import app as server_app
from fedmoe_server.report.run_folder import new_run_dir
from simulation.engines import run_simulation

CLIENT_APP = "benchmarks.attacks.clients:app"
# The default job in a twelfth of its rounds: all windows, larger server steps, and only the last model counts. As with
# real clients, the server sees each reply.
SHORT = (
    "training.max_windows=0 federation.num_rounds=60 federation.warmup_rounds=6 federation.evaluate_every=0 "
    "federation.patience=0 federation.checkpoint_every=0 federation.strategy_parameters.eta=0.02 "
    "federation.strategy_parameters.tau=1e-06 simulation.aggregate_in_hosts=False"
).split()
COLD_SHARE = 0.2  # of the items, by the number of users that met them: the promoted one is the most popular of these
# What bad clients do, the share of the clients that are bad, and the strength: see ``Attack``.
ATTACKS: dict[str, tuple[str, float, float]] = {
    "none": ("none", 0.0, 1.0),
    "x1000": ("scale", 0.1, 1000.0),
    "sign flip x5": ("scale", 0.1, -5.0),
    "promotion": ("promote", 0.05, 3.0),
    "quiet promotion": ("mimic", 0.05, 1.0),
}


def _robust(**parameters: Any) -> dict[str, Any]:
    inner = {"name": "fedadam", "eta": 0.02, "tau": 1e-6}
    return strategy("robust-rows", "cosine", strategy=inner, clip=1.0, **parameters)


def _private(epsilon: float, **more: Any) -> dict[str, Any]:
    # Many clients a round and few rounds: the noise is divided by the clients of a round, and paid for in each.
    few = {"federation.client_fraction": 0.5, "federation.num_rounds": 30, "federation.warmup_rounds": 30}
    return {**few, "privacy.epsilon": epsilon, **more}


# "none" has no clipping; malformed replies are refused there too, since a mean with them is no model.
DEFENCES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "none": {"federation.guards": {"norm_multiple": 0.0}},
    "norm clipping": _robust(row=0.0),
    "bounded rows": _robust(row=2.0),
    "trimmed rows": _robust(row=2.0, trim=0.1),
    "trimmed mean": strategy("fedtrimmedavg", beta=0.2),
    "Krum": strategy("krum", num_malicious_nodes=5),
    "Multi-Krum": strategy("multikrum", num_malicious_nodes=5, num_nodes_to_select=30),
    **{f"privacy, epsilon {epsilon:g}": _private(epsilon) for epsilon in (1.0, 2.0, 4.0, 8.0, 16.0)},
}
# Under what settings clients train whose updates are looked into.
LEAKS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "privacy, epsilon 8": _private(8.0),
    "privacy, epsilon 8, noise of the clients": _private(8.0, **{"privacy.side": "client"}),
}


def meets(defence: str, attack: str) -> bool:
    """Whether a cell is worth a run: noise is no guard, so one attack against one budget is enough."""
    private = "privacy.epsilon" in DEFENCES[defence]
    return attack == "none" or not private or (attack, defence) == ("promotion", "privacy, epsilon 8")


@dataclass(frozen=True)
class Outcome:
    """HR@10 on test over all users, and ER@10 of the target over those who never met it; both 0 to 1.

    error: why the run has no model; then the figures are 0. run_dir: its folder.
    """

    hit_rate: float = 0.0
    exposure: float = 0.0
    error: str = ""
    run_dir: str = ""


def settings_of(base: Settings, changes: Mapping[str, Any], seed: int, folder: Path, name: str) -> Settings:
    """Return the base settings with changes by their full keys, and a seed."""
    return changed(base, changes, seed=seed, save_dir=str(folder / "runs"), name=slug(name))


def outcome(kept: Kept, base: Settings, folder: Path, defence: str, attack: str, seed: int) -> Outcome:
    """Return what becomes of a run under an attack; it is done once and kept."""
    label = f"{attack} against {defence}, seed {seed}"
    settings = settings_of(base, DEFENCES[defence], seed, folder, label)
    bad = attack_of(attack, load_dataset(settings).interactions, seed)
    about = {"settings": settings.model_dump(mode="json", exclude={"save_dir"}), "attack": bad.model_dump()}
    return Outcome(**kept.get(label, about, lambda: asdict(run(settings, bad))))


def attack_of(name: str, interactions: Interactions, seed: int) -> Attack:
    """Return the attack for a data set: its bad clients drawn from the seed, its target a cold item."""
    kind, share, strength = ATTACKS[name]
    users = interactions.num_users
    bad = np.sort(generator(seed, "bad clients").choice(users, round(share * users), replace=False))
    tree = {"kind": kind, "clients": bad.tolist(), "target": cold_item(interactions), "strength": strength}
    return Attack.model_validate(tree)


def cold_item(interactions: Interactions) -> int:
    """Return the item that stands at COLD_SHARE when all are sorted by how often they occur, the rarest first."""
    counts = np.bincount(interactions.items, minlength=interactions.num_items + 1)[1:]
    order = np.argsort(counts, kind="stable")
    return int(order[int(COLD_SHARE * len(order))]) + 1


def run(settings: Settings, attack: Attack) -> Outcome:
    """Run a federation some of whose clients are bad, and measure the model of the server."""
    print(settings.name, flush=True)
    dataset, run_dir = load_dataset(settings), new_run_dir(settings, datetime.now())
    run_config: dict[str, Any] = {**to_run_config(settings), "run_dir": str(run_dir), "resume": "", "simulated": True}
    run_config["attack"] = attack.model_dump_json()
    users, simulation = dataset.interactions.num_users, settings.simulation
    try:
        # Bad clients are not stacked.
        engine = "ray" if simulation.engine == "vectorized" else simulation.engine
        run_simulation(engine, server_app, CLIENT_APP, users, run_config, simulation)
        bench, _ = load_chosen(run_dir, settings, dataset)
    except FedMoEError as error:
        return Outcome(error=str(error))
    scorer = catalogue_scorer(bench.model)
    # The bad clients' own screens are of no interest to anybody.
    honest = np.setdiff1d(np.arange(users), np.array(attack.clients, np.int64))
    shown = exposure(scorer, dataset.interactions, honest, attack.target, context_length(settings))
    return Outcome(float((ranks_of(scorer, settings, dataset) <= 10).mean()), shown, run_dir=str(run_dir))


def exposure(scorer: Scorer, histories: Histories, users: NDArray[np.int64], item: int, context_length: int) -> float:
    """Return ER@10: the share of the users who have ``item`` among their first ten, of those who never met it."""
    strangers = [int(user) for user in users if item not in histories.history(int(user))]
    if not strangers:
        return 0.0
    followed: Any = SimpleNamespace(  # the same histories, as if this item came next
        num_items=histories.num_items, history=lambda user: np.append(histories.history(user), np.int32(item))
    )
    found = ranks(scorer, followed, strangers, "test", EvaluationSettings(), 0, context_length)
    return float((found <= 10).mean())
