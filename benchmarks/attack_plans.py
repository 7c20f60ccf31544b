"""What the attack benchmark compares: attacks, defences, and the shortened job that they meet in.

The defence "none" has no clipping; malformed replies are refused there too, since a mean with them is no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.attack_clients import Attack, Kind
from data.interactions import Interactions
from data.sampling import generator

ADAM: dict[str, Any] = {"eta": 0.02, "tau": 1e-6}
INNER = {"name": "fedadam", **ADAM}
# The default job in a twelfth of its rounds: all windows, larger server steps, and only the last model counts.
SHORT: dict[str, Any] = {
    "training.max_windows": 0,
    "federation.num_rounds": 60,
    "federation.warmup_rounds": 6,
    "federation.evaluate_every": 0,
    "federation.patience": 0,
    "federation.checkpoint_every": 0,
    "federation.strategy_parameters": ADAM,
    "simulation.aggregate_in_hosts": False,  # as with real clients: the server sees each reply
}
COLD_SHARE = 0.2  # of the items, by the number of users that met them: the promoted one is the most popular of these


@dataclass(frozen=True)
class Plan:
    """kind: what bad clients do; share: of the clients that are bad; strength: see ``Attack``."""

    kind: Kind
    share: float = 0.1
    strength: float = 1.0


ATTACKS: dict[str, Plan] = {
    "none": Plan("none", 0.0),
    "NaN": Plan("nan"),
    "infinite": Plan("infinite"),
    "wrong shapes": Plan("misshapen"),
    "x1000": Plan("x1000"),
    "huge num-examples": Plan("examples"),
    "sign flip x5": Plan("flip", strength=5.0),
    "promotion": Plan("promote", 0.05, strength=3.0),
    "quiet promotion": Plan("mimic", 0.05),
}
_ROBUST = {"federation.strategy": "robust-rows", "federation.server_schedule": "cosine"}
# What the checks refuse whatever the strategy: shown once, with the default guards.
MALFORMED = ("NaN", "infinite", "wrong shapes", "huge num-examples")
DEFENCES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "none": {"federation.guards": {"norm_multiple": 0.0}},
    "norm clipping": {
        **_ROBUST,
        "federation.strategy_parameters": {"clip": 1.0, "row": 0.0, "strategy": INNER},
    },
    "bounded rows": {**_ROBUST, "federation.strategy_parameters": {"clip": 1.0, "row": 2.0, "strategy": INNER}},
    "trimmed rows": {
        **_ROBUST,
        "federation.strategy_parameters": {"clip": 1.0, "row": 2.0, "trim": 0.1, "strategy": INNER},
    },
    "trimmed mean": {
        "federation.strategy": "fedtrimmedavg",
        "federation.strategy_parameters": {"beta": 0.2},
        "federation.server_schedule": "constant",
    },
    "Krum": {
        "federation.strategy": "krum",
        "federation.strategy_parameters": {"num_malicious_nodes": 5},
        "federation.server_schedule": "constant",
    },
    "Multi-Krum": {
        "federation.strategy": "multikrum",
        "federation.strategy_parameters": {"num_malicious_nodes": 5, "num_nodes_to_select": 30},
        "federation.server_schedule": "constant",
    },
    "privacy, epsilon 8": {"privacy.epsilon": 8.0},
}
# Many clients a round and few rounds: the noise is divided by the clients of a round, and paid for in each.
PRIVATE: dict[str, Any] = {
    "federation.client_fraction": 0.5,
    "federation.num_rounds": 30,
    "federation.warmup_rounds": 30,
}
EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0)


def meets(defence: str, attack: str) -> bool:
    """Whether a cell is worth a run: malformed replies never get to a strategy; noise is no guard."""
    if attack in MALFORMED:
        return defence == "defaults"
    return attack in ("none", "promotion") or defence != "privacy, epsilon 8"


def attack_of(plan: Plan, interactions: Interactions, seed: int) -> Attack:
    """Return the attack for a data set: its bad clients drawn from the seed, its target a cold item."""
    users = interactions.num_users
    size = round(plan.share * users)
    bad = np.sort(generator(seed, "bad clients").choice(users, size, replace=False))
    return Attack(
        kind=plan.kind,
        clients=tuple(int(client) for client in bad),
        target=cold_item(interactions),
        strength=plan.strength,
    )


def cold_item(interactions: Interactions) -> int:
    """Return the item that stands at COLD_SHARE when all are sorted by how often they occur, the rarest first."""
    counts = np.bincount(interactions.items, minlength=interactions.num_items + 1)[1:]
    order = np.argsort(counts, kind="stable")
    return int(order[int(COLD_SHARE * len(order))]) + 1
