"""What the engine benchmark runs: the jobs, their data, the cohorts, and which engine executes which.

A case is one data set with the settings of a job and one or more cohort sizes; a plan is what one process gets to do of
it: one engine, the settings as resolved, and how many rounds of which cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmoe.errors import FedMoEError, nearest
from fedmoe.loading import load_settings, settings_from
from fedmoe.settings import Settings

# What an engine's name means: settings over those of the case. Empty: no federation, or not this project's.
ENGINES: Mapping[str, Mapping[str, Any]] = {
    "flower": {"simulation.engine": "flower"},
    "ray": {"simulation.engine": "ray"},
    "ray, every reply": {"simulation.engine": "ray", "simulation.aggregate_in_hosts": False},
    "ray, dense": {"simulation.engine": "ray", "federation.item_updates": "dense"},
    "vectorized": {"simulation.engine": "vectorized"},
    "central": {},
    "pfl": {},
}
ALONE = ("central", "pfl")  # they get the cohorts in their plan, since no strategy of ours chooses them
DEFAULT_ENGINES = ("flower", "ray", "vectorized", "central", "pfl")
SLOW = {"flower": 1}  # warm rounds at most: one takes as long as twenty of the others'
FLOWER_USERS = 10_000  # above it the dispatcher, which scans all messages for each node, would need hours

# No evaluation, no checkpoint, and the phase in which a job spends nine tenths of its rounds: after the warm-up.
_TIMED = ("federation.warmup_rounds=0", "federation.evaluate_every=0", "federation.checkpoint_every=0")
_SWEEP = ("name=sweep", "dataset=synthetic", "data.synthetic.items=2000", "data.synthetic.mean_length=30")
_FEATURES = ("data.text_file=text_minilm_384.npy", "data.visual_file=visual_effnet_1280.npy")
# Users, items and mean length of the real data set, for the stand-in where the files are not at hand.
_SHAPES = {"ml-100k": (943, 1682, 106), "ml-1m": (6040, 3416, 165)}
TINY = (
    "name=tiny dataset=synthetic data.synthetic.items=60 data.synthetic.mean_length=12 dim=8 attention_dim=8 blocks=1 "
    "max_seq_len=8 memory_size=8 memory_refresh=4 num_negatives=10"
).split()


@dataclass(frozen=True)
class Case:
    """A data set and what is done with it.

    Attributes:
        name: in tables and in the results.
        words: settings, as of ``sim.py``.
        phases: clients of a round and warm rounds, one after the other in the same process.
        engines: those that take part.
    """

    name: str
    words: tuple[str, ...]
    phases: tuple[tuple[int, int], ...]
    engines: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What one process does: ``phases`` as in Case, the first of them with one more round, the cold one.

    cohorts: the clients of each round, for engines that do not choose them by our strategy; else empty.
    """

    case: str
    engine: str
    settings: dict[str, Any]
    phases: list[list[int]]
    cohorts: list[list[int]]

    def as_json(self) -> dict[str, Any]:
        """Return what a process reads."""
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """The benchmark's command line: see ``benchmarks.engine``."""

    engines: Sequence[str]
    users: Sequence[int]
    cohorts: Sequence[int]
    rounds: int
    data_dir: Path | None = None
    features: bool = False


def cases(options: Options) -> list[Case]:
    """Return all cases: the two MovieLens jobs, the sweep over N and the cohort, and the large catalogue."""
    for engine in options.engines:
        if engine not in ENGINES:
            raise FedMoEError(f"no engine '{engine}'{nearest(engine, ENGINES)} They are: {', '.join(ENGINES)}")
    jobs = [_job(name, options) for name in ("ml-1m", "ml-100k")]
    sweep = [_sweep(users, options) for users in sorted(set(options.users))]
    return [*jobs, *sweep, _large_catalogue(options)]


def smoke_cases(engines: Sequence[str]) -> list[Case]:
    """Return one tiny job and a tiny sweep, which show within a minute that all of it works."""
    job = Case("ml-1m", (*TINY, "data.synthetic.users=40"), ((8, 2),), tuple(engines))
    fast = [engine for engine in engines if engine not in (*SLOW, *ALONE)][:1]  # one is enough to see the sweep work
    sweep = Case("synthetic-80", (*TINY, "data.synthetic.users=80"), ((8, 1), (16, 1)), tuple(fast))
    return [job, sweep]


def _job(name: str, options: Options) -> Case:
    users, items, length = _SHAPES[name]
    folder = None if options.data_dir is None else options.data_dir / name
    if folder is not None:
        if not folder.is_dir():
            raise FedMoEError(f"--data-dir: {folder} is no folder - name the folder that holds ml-1m and ml-100k")
        words: tuple[str, ...] = (name, f"data.data_dir={folder.resolve()}", *(_FEATURES if options.features else ()))
    else:
        shape = (f"synthetic.users={users}", f"synthetic.items={items}", f"synthetic.mean_length={length}")
        words = (name, "dataset=synthetic", "data.synthetic.feature_dim=128", *(f"data.{word}" for word in shape))
    return Case(name, (*words, *_TIMED), ((round(users / 10), options.rounds),), tuple(options.engines))


def _sweep(users: int, options: Options) -> Case:
    """The users' number alone differs; with the most users all cohort sizes are run, one after the other."""
    sizes = options.cohorts if users == max(options.users) else options.cohorts[:1]
    engines = tuple(engine for engine in options.engines if engine not in (*SLOW, *ALONE))
    phases = tuple((min(size, users), options.rounds) for size in sizes)
    return Case(f"synthetic-{users}", (*_SWEEP, *_TIMED, f"data.synthetic.users={users}"), phases, engines)


def _large_catalogue(options: Options) -> Case:
    words = ("name=catalogue", "dataset=synthetic", "data.synthetic.items=100000", "data.synthetic.users=6040")
    engines = tuple(engine for engine in ("ray", "vectorized") if engine in options.engines)
    engines += ("ray, dense",) if "ray" in engines else ()
    return Case("catalogue-100000", (*words, *_TIMED), ((32, options.rounds),), engines)


def settings_of(case: Case) -> Settings:
    """Return the settings of a case, whatever the engine. Raises FedMoEError for wrong ones."""
    return load_settings(list(case.words))[0]


def plan_of(case: Case, engine: str, users: int) -> Plan:
    """Return the plan of one engine.

    Raises FedMoEError where the settings do not know what the engine asks for.
    """
    settings = settings_of(case)
    phases = [[cohort, min(rounds, SLOW.get(engine, rounds))] for cohort, rounds in case.phases]
    tree = settings.model_dump(mode="json")
    for key, value in ENGINES[engine].items():
        section, leaf = key.split(".")
        tree[section][leaf] = value
    tree["federation"]["client_fraction"] = min(1.0, phases[0][0] / users)
    cohorts = _cohorts(settings.seed, phases, users) if engine in ALONE else []
    return Plan(case.name, engine, settings_from(tree).model_dump(mode="json"), phases, cohorts)


def _cohorts(seed: int, phases: Sequence[Sequence[int]], users: int) -> list[list[int]]:
    """Return the very clients that ``strategies.Cohorts`` draws for these rounds."""
    from strategies.layers.cohort import sample_clients

    sizes = [cohort for index, (cohort, rounds) in enumerate(phases) for _ in range(rounds + (index == 0))]
    return [sample_clients(seed, "cohort", number, range(users), size) for number, size in enumerate(sizes, start=1)]
