"""Strategies written from their papers, on every engine, against loops of a few lines without any message."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import paper_strategies as papers
import pytest
import torch
from flwr.app import RecordDict
from hosts_here import ONE_PROCESS
from paper_strategies import ALPHA, CLIENTS, Model, mean, plus
from plain_clients import bench_of, local_sgd
from safetensors.numpy import load_file

import sim
from examples.clients.scaffold import Scaffold
from fedmoe_client.learning.client import FedMoEClient
from fedmoe_client.store.private import InContext
from strategies.check.contract import findings

ROUNDS = 2
SMALL = (
    "dataset=synthetic data.synthetic.users=6 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=6 "
    "memory_size=6 memory_refresh=3 num_negatives=10 client_fraction=1 warmup_rounds=0 shared=all evaluate_every=0 "
    "num_rounds=2 hosts=1 dropout=0 batch_size=1 max_windows=0 data.synthetic.mean_length=14 "
    "federation.guards.norm_multiple=0 learning_rate=0.2 clip_norm=0 clip_gate=0 name=s"
).split()
Gradient = Callable[[str, torch.nn.Parameter], torch.Tensor | float]


class Clients:
    """Clients without messages."""

    def __init__(self) -> None:
        self.bench = bench_of(*SMALL)
        self.steps: dict[int, int] = {}  # of each client's latest round

    def start(self) -> Model:
        return self.bench.take(self.bench.names)

    def train(self, model: Model, client: int, number: int, more: Gradient = lambda *_: 0.0) -> tuple[Model, float]:
        trained, steps = local_sgd(self.bench, model, client, number, more)
        self.steps[client] = len(steps.batches)
        return trained, float(steps.weight)

    def all(
        self, model: Model, number: int, clients: Iterable[int] = range(CLIENTS)
    ) -> tuple[list[Model], list[float]]:
        found = [self.train(model, client, number) for client in clients]
        return [each for each, _ in found], [weight for _, weight in found]

    def rank(self, model: Model, client: int) -> float:
        fed = FedMoEClient(self.bench, client, InContext(RecordDict()), simulated=True)
        config = {"shared": ["*"], "split": "validation", "server-round": 1}
        return float(fed.evaluate(list(model.values()), config)[2]["global-rank"])  # type: ignore[arg-type]


Loop = Callable[[Clients, Model, int], Model]  # clients, model, round -> the next model; made anew for each run


def fedavg() -> Loop:
    return lambda clients, model, number: mean(*clients.all(model, number))


def power_of_choice() -> Loop:
    def loop(clients: Clients, model: Model, number: int) -> Model:
        worst = sorted(range(CLIENTS), key=lambda client: (-clients.rank(model, client), client))[:2]
        return mean(*clients.all(model, number, sorted(worst)))

    return loop


def two_models(chosen: Callable[[Clients, Model, Model], list[int]]) -> Loop:
    other: Model = {}

    def loop(clients: Clients, model: Model, number: int) -> Model:
        nonlocal other
        other = other or papers.second_model(model)
        second = chosen(clients, model, other)
        first = [client for client in range(CLIENTS) if client not in second]
        assert first and second, "or there would be nothing to see"
        other, model = mean(*clients.all(other, number, second)), mean(*clients.all(model, number, first))
        return model

    return loop


def fixed() -> Loop:
    return two_models(lambda *_: [1, 3, 5])


def ifca() -> Loop:
    return two_models(lambda cs, one, two: [c for c in range(CLIENTS) if cs.rank(two, c) < cs.rank(one, c)])


def own_proximal() -> Loop:
    def loop(clients: Clients, model: Model, number: int) -> Model:
        def pull(client: int) -> Gradient:
            return lambda name, own: 0.5 * client * (own - torch.as_tensor(model[name]))

        found = [clients.train(model, client, number, pull(client)) for client in range(CLIENTS)]
        return mean([each for each, _ in found], [weight for _, weight in found])

    return loop


def fedexp() -> Loop:
    return lambda clients, model, number: papers.extrapolated(model, clients.all(model, number)[0])


def asking() -> Loop:
    return lambda clients, model, number: mean(*clients.all(model, number, range(CLIENTS - 3, CLIENTS)))


def fedavgm() -> Loop:
    velocity: Model = {}

    def loop(clients: Clients, model: Model, number: int) -> Model:
        nonlocal velocity
        step = plus(mean(*clients.all(model, number)), model, -1.0)
        velocity = {name: step[name] + 0.9 * velocity.get(name, 0.0) for name in step}
        return plus(model, velocity)

    return loop


def fedyogi() -> Loop:
    m: Model = {}
    v: Model = {}

    def loop(clients: Clients, model: Model, number: int) -> Model:
        step = plus(mean(clients.all(model, number)[0], [1.0] * CLIENTS), model, -1.0)
        for name, d in step.items():
            m[name] = 0.9 * m.get(name, 0.0 * d) + 0.1 * d
            before = v.get(name, 0.0 * d + 1e-4)
            v[name] = before - 0.01 * d**2 * np.sign(before - d**2)
        return plus(model, {name: m[name] / (v[name] ** 0.5 + 0.01) for name in step}, 0.1)

    return loop


def trimmed_mean() -> Loop:
    def loop(clients: Clients, model: Model, number: int) -> Model:
        models = clients.all(model, number)[0]
        total = {name: sum(each[name] for each in models) for name in model}
        ends = {n: np.max([m[n] for m in models], 0) + np.min([m[n] for m in models], 0) for n in model}
        return {name: np.asarray((total[name] - ends[name]) / (CLIENTS - 2), np.float32) for name in model}

    return loop


def mifa() -> Loop:
    latest: dict[int, Model] = {}

    def loop(clients: Clients, model: Model, number: int) -> Model:
        for client in range(CLIENTS):
            if (client + number) % 2:
                latest[client] = plus(clients.train(model, client, number)[0], model, -1.0)
        return plus(model, {name: sum(each[name] for each in latest.values()) for name in model}, 1 / CLIENTS)  # type: ignore[misc]

    return loop


def stale() -> Loop:
    late: Model = {}

    def loop(clients: Clients, model: Model, number: int) -> Model:
        nonlocal late
        found = clients.all(model, number)[0]
        fast, slow = (plus(mean(found[first::2], [1.0] * 3), model, -1.0) for first in (0, 1))
        step = {name: fast[name] + 0.5 * late.get(name, 0.0) for name in model}
        late = slow
        return plus(model, step, 0.5)

    return loop


def fednova() -> Loop:
    def loop(clients: Clients, model: Model, number: int) -> Model:
        models, weights = clients.all(model, number)
        steps = [clients.steps[client] for client in range(CLIENTS)]
        assert len(set(steps)) > 1, "or there would be nothing to see"
        shares = [weight / sum(weights) for weight in weights]
        tau = sum(p * s for p, s in zip(shares, steps, strict=True))
        step = {n: sum(p / s * (m[n] - model[n]) for p, s, m in zip(shares, steps, models, strict=True)) for n in model}
        return plus(model, step, tau)  # type: ignore[arg-type]

    return loop


def feddyn() -> Loop:
    own: dict[int, Model] = {}
    h: Model = {}

    def loop(clients: Clients, model: Model, number: int) -> Model:
        nonlocal h
        zeros = {name: np.zeros_like(value) for name, value in model.items()}
        models = []
        for client in range(CLIENTS):
            linear = own.get(client, zeros)

            def more(name: str, parameter: torch.nn.Parameter, linear: Model = linear) -> torch.Tensor:
                return ALPHA * (parameter.detach() - torch.as_tensor(model[name])) - torch.as_tensor(linear[name])

            models.append(clients.train(model, client, number, more)[0])
            own[client] = plus(linear, plus(models[-1], model, -1.0), -ALPHA)
        average = mean(models, [1.0] * CLIENTS)
        h = plus(h or zeros, plus(average, model, -1.0), -ALPHA)
        return plus(average, h, -1 / ALPHA)

    return loop


def own_rates() -> Loop:
    def loop(clients: Clients, model: Model, number: int) -> Model:
        def scaled(client: int) -> Gradient:
            return lambda _, own: 0.0 if own.grad is None else (1.0 / (1 + client) - 1.0) * own.grad

        found = [clients.train(model, client, number, scaled(client)) for client in range(CLIENTS)]
        return mean([each for each, _ in found], [weight for _, weight in found])

    return loop


def asymmetric() -> Loop:
    def loop(clients: Clients, model: Model, number: int) -> Model:
        moved = []
        for client, trained in enumerate(clients.all(model, number)[0]):
            moved.append({name: (trained[name] - model[name]) / np.float32(1 + client) for name in model})
        norms = [sum(float((u.astype(np.float64) ** 2).sum()) for u in update.values()) ** 0.5 for update in moved]
        return plus(model, mean(moved, [1 / norm for norm in norms]))

    return loop


# strategy -> its loop, and the client that belongs to it
SUITE: dict[type, tuple[Callable[[], Loop], str]] = {
    papers.PowerOfChoice: (power_of_choice, ""),
    papers.TwoModels: (fixed, ""),
    papers.IFCA: (ifca, ""),
    papers.OwnProximal: (own_proximal, ""),
    papers.FedExP: (fedexp, ""),
    papers.Asking: (asking, ""),
    papers.FedAvgM: (fedavgm, ""),
    papers.FedYogi: (fedyogi, ""),
    papers.TrimmedMean: (trimmed_mean, ""),
    papers.Mifa: (mifa, ""),
    papers.Stale: (stale, ""),
    papers.FedNova: (fednova, "Counting"),
    papers.FedDyn: (feddyn, "Dynamic"),
    papers.OwnRates: (own_rates, "Rated"),
    papers.Asymmetric: (asymmetric, "Telling"),
    papers.Renamed: (fedavg, ""),
}


@cache
def reference(make: Callable[[], Loop]) -> Model:
    """Return the model after the run; engines are compared with the same."""
    clients, loop = Clients(), make()
    model = clients.start()
    for number in range(1, ROUNDS + 1):
        model = loop(clients, model, number)
    return model


def run_on(engine: str, ray_address: str, folder: Path, strategy: type, *more: str) -> Path:
    """Do a run and return its folder."""
    client = SUITE[strategy][1] if strategy in SUITE else ""
    words = [
        *SMALL,
        f"ray_address={ray_address}",
        *(ONE_PROCESS if engine == "flower" else [f"engine={engine}"]),
        f"save_dir={folder}",
        f"strategy=paper_strategies:{strategy.__name__}",
    ]
    assert sim.main([*words, *([f"client=paper_clients:{client}"] if client else []), *more]) == 0
    return sorted(folder.iterdir())[-1]


def arrays_of(run_dir: Path) -> Model:
    return load_file(run_dir / "checkpoints" / f"round-{ROUNDS:06d}" / "arrays.safetensors")


pytestmark = pytest.mark.usefixtures("hosts_here")  # what a run does is the same wherever its hosts are
# Always tried on each engine are questions, several models, own configs and records. Flower's runtime starts slowly.
TALKING = (papers.PowerOfChoice, papers.IFCA, papers.OwnProximal, papers.FedNova, papers.OwnRates, papers.Asymmetric)
ALWAYS = {"ray": tuple(SUITE), "vectorized": TALKING, "flower": (papers.PowerOfChoice, papers.IFCA, papers.Asymmetric)}


@pytest.mark.parametrize(
    ("strategy", "engine"),
    [
        pytest.param(strategy, engine, marks=() if strategy in tried else pytest.mark.more)
        for engine, tried in ALWAYS.items()
        for strategy in SUITE
    ],
)
def test_a_published_strategy_gives_what_its_paper_says(
    strategy: type, engine: str, ray_address: str, tmp_path: Path
) -> None:
    expected, plain = reference(SUITE[strategy][0]), reference(fedavg)
    found = arrays_of(run_on(engine, ray_address, tmp_path, strategy))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=3e-5, err_msg=name)
    if SUITE[strategy][0] is not fedavg:  # or the strategy would not have been heard
        assert max(np.abs(plain[name] - expected[name]).max() for name in plain) > 1e-3


@pytest.mark.parametrize("strategy", [*SUITE, Scaffold])
def test_the_check_flags_none_of_them(strategy: type) -> None:
    found = findings(lambda: strategy(clients=8) if strategy is Scaffold else strategy())
    assert [str(finding) for finding in found if not finding.holds] == []


@pytest.mark.parametrize("strategy", [papers.Mifa, papers.FedDyn])
def test_what_a_strategy_remembers_of_each_client_survives_a_resume(
    strategy: type, ray_address: str, tmp_path: Path
) -> None:
    whole = arrays_of(run_on("ray", ray_address, tmp_path / "whole", strategy))
    cut = run_on("ray", ray_address, tmp_path / "cut", strategy, "checkpoint_every=1")
    shutil.rmtree(cut / "checkpoints" / f"round-{ROUNDS:06d}")
    (cut / "result.json").unlink()
    assert sim.main(["--resume", str(cut)]) == 0
    found = arrays_of(cut)
    assert all(np.array_equal(found[name], array) for name, array in whole.items())


@pytest.mark.parametrize(
    ("strategy", "complaint"),
    [
        (papers.OwnStart, "OwnStart has a start.. of its own, which would never be called"),
        (papers.Listing, "strategy Listing.aggregate_train returned .list, NoneType.; return an ArrayRecord"),
        (
            papers.Raising,
            r"strategy Raising cannot aggregate: KeyError: 'no such key'; .*paper_strategies.py, line \d+",
        ),
    ],
)
def test_what_cannot_work_is_told_with_its_place(
    strategy: type, complaint: str, ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        run_on("ray", ray_address, tmp_path, strategy)
    assert re.search(complaint, capsys.readouterr().err)
