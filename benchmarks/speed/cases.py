"""What is measured: the jobs, their data and cohorts, and which engine executes which.

A case is one data set with the settings of a job and a cohort; a plan is what one process gets to do of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs import changed, job
from fedmoe.errors import FedMoEError
from strategies.layers.course import sample_clients

# What an engine's name means: settings over those of the case. Empty: no federation, or not this project's.
ENGINES: Mapping[str, Mapping[str, Any]] = {
    "flower": {"simulation.engine": "flower"},
    "ray": {"simulation.engine": "ray"},
    "vectorized": {"simulation.engine": "vectorized"},
    "central": {},
    "central SASRec": {"model.mixture": False},
    "pfl": {},
}
DEFAULT_ENGINES = ("flower", "ray", "vectorized", "central", "central SASRec", "pfl")
CENTRAL = ("central", "central SASRec")
OURS = ("ray", "vectorized")  # that take part in the sweep
WARM_ROUNDS = {"flower": 1}  # one of Flower's takes as long as twenty of the others'
JOBS = {"ml-1m": 604, "ml-100k": 94}  # configs, and a tenth of their users
USERS = (943, 6040, 100_000, 1_000_000)  # of the sweep, in rounds of the first cohort
COHORTS = (604, 100, 2000)  # of the sweep with the most users
ITEMS = (10_000, 100_000, 1_000_000)  # of a catalogue of 100,000 users
CATALOGUE_CLIENTS = 667  # of its rounds: what a run of 300 rounds takes of so many users

# No evaluation, no checkpoint, and the phase in which a job spends nine tenths of its rounds: after the warm-up.
_TIMED = "federation.warmup_rounds=0 federation.evaluate_every=0 federation.checkpoint_every=0"
_SWEEP = f"name=sweep dataset=synthetic data.synthetic.items=2000 data.synthetic.mean_length=30 {_TIMED}"
_CATALOGUE = (
    "name=catalogue federation.strategy=lazyadam dataset=synthetic data.synthetic.users=100000 "
    f"data.synthetic.mean_length=30 {_TIMED}"
)
TINY = (
    "name=tiny dataset=synthetic data.synthetic.items=60 data.synthetic.mean_length=12 dim=8 attention_dim=8 blocks=1 "
    "max_seq_len=8 memory_size=8 memory_refresh=4 num_negatives=10"
)


@dataclass(frozen=True)
class Case:
    """name: in tables and results; words: settings, as of ``sim.py``; clients: of a round; engines: that take part.

    warm: rounds after the cold one. The first of a large catalogue also make the memory that later ones use again.
    """

    name: str
    words: str
    clients: int
    engines: tuple[str, ...]
    warm: int = 3


@dataclass(frozen=True)
class Plan:
    """What one process does: rounds of so many clients, the first of which is the cold one.

    cohorts: the clients of each round, for engines that do not choose them by our strategy; else empty.
    """

    case: str
    engine: str
    settings: dict[str, Any]
    clients: int
    rounds: int
    cohorts: list[list[int]]


def cases(engines: Sequence[str], data_dir: Path | None = None) -> list[Case]:
    """Return all cases: the two MovieLens jobs, and the sweeps over users, cohorts and items."""
    found = []
    for name, clients in JOBS.items():
        folder = None if data_dir is None else (data_dir / name).resolve()
        if folder is not None and not folder.is_dir():
            raise FedMoEError(f"--data-dir: {folder} is no folder - name the folder that holds ml-1m and ml-100k")
        words = f"{name} {_TIMED}" + ("" if folder is None else f" data.data_dir={folder}")
        found.append(Case(name, words, clients, tuple(engines)))
    ours = tuple(engine for engine in OURS if engine in engines)
    for users in USERS:
        for clients in COHORTS if users == max(USERS) else COHORTS[:1]:
            words = f"{_SWEEP} data.synthetic.users={users}"
            found.append(Case(f"synthetic-{users}-{clients}", words, clients, ours))
    for items in ITEMS:
        words = f"{_CATALOGUE} data.synthetic.items={items}"
        found.append(Case(f"catalogue-{items}", words, CATALOGUE_CLIENTS, ours, warm=12))
    return found


def smoke_cases(engines: Sequence[str]) -> list[Case]:
    """Return one tiny job and a tiny sweep, which show within a minute that all of it works."""
    ours = tuple(engine for engine in OURS if engine in engines)[:1]  # one is enough to see the sweep work
    return [
        Case("ml-1m", f"{TINY} data.synthetic.users=40", 8, tuple(engines)),
        Case("synthetic-80-8", f"{TINY} data.synthetic.users=80", 8, ours),
    ]


def plan_of(case: Case, engine: str, users: int) -> Plan:
    """Return the plan of one engine for a case with so many users."""
    clients, rounds = min(case.clients, users), 1 + WARM_ROUNDS.get(engine, case.warm)
    changes = {**ENGINES[engine], "federation.client_fraction": clients / users}
    settings = changed(job(case.words.split()), changes)
    # Those that the strategy draws for these rounds.
    drawn = [sample_clients(settings.seed, "cohort", n, range(users), clients) for n in range(1, rounds + 1)]
    cohorts = drawn if engine in (*CENTRAL, "pfl") else []
    return Plan(case.name, engine, settings.model_dump(mode="json"), clients, rounds, cohorts)
