"""Strategies written from their papers, against plain loops: several models a round, choices by loss, questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from plain_clients import bench_of, local_sgd
from safetensors.numpy import load_file

import sim
from fedmoe_client.learning.client import FedMoEClient
from fedmoe_client.store.private import InContext

CLIENTS, ROUNDS = 6, 3
SMALL = (
    "dataset=synthetic data.synthetic.users=6 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=6 "
    "memory_size=6 memory_refresh=3 num_negatives=10 client_fraction=1 warmup_rounds=0 shared=all evaluate_every=0 "
    "num_rounds=3 hosts=1 dropout=0 batch_size=1 federation.guards.norm_multiple=0 learning_rate=0.2 name=s"
).split()
Model = dict[str, np.ndarray]


def record(model: Model) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in model.items()})


def values(arrays: ArrayRecord) -> Model:
    return {name: array.numpy() for name, array in arrays.items()}


def mean(models: list[Model], weights: list[float]) -> Model:
    total = sum(weights)
    return {
        name: np.asarray(sum(w * m[name] for m, w in zip(models, weights, strict=True)) / total, np.float32)
        for name in models[0]
    }


def answers(replies: Iterable[Message]) -> list[tuple[int, Model, float]]:
    """Return node, arrays and weight of each reply."""
    return [
        (r.metadata.src_node_id, values(r.content.array_records["arrays"]), float(r.content["metrics"]["num-examples"]))  # type: ignore[index, arg-type]
        for r in replies
        if r.has_content()
    ]


# The strategies


class PowerOfChoice(FedAvg):
    """Cho et al. 2020: ask all candidates for their loss, train those with the largest."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        asked = [
            Message(RecordDict({"arrays": arrays, "config": ConfigRecord()}), node, "evaluate")
            for node in grid.get_node_ids()
        ]
        loss = {
            reply.metadata.src_node_id: -float(reply.content["metrics"]["global-rank"])  # type: ignore[index, arg-type]
            for reply in grid.send_and_receive(asked)
        }
        chosen = sorted(loss, key=lambda node: (loss[node], node))[:2]
        messages = super().configure_train(server_round, arrays, config, grid)
        return [message for message in messages if message.metadata.dst_node_id in chosen]


class TwoModels(FedAvg):
    """Clustered models (Ghosh et al. 2020) with a fixed choice: even clients train one model, odd ones another."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.other: Model = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.first = values(arrays)
        self.other = self.other or {name: np.asarray(1.1 * value) for name, value in self.first.items()}
        clients = grid.client_ids()  # type: ignore[attr-defined]
        self.odd = [str(node) for node, client in clients.items() if client % 2]
        for message in super().configure_train(server_round, arrays, config, grid):
            if str(message.metadata.dst_node_id) in self.odd:
                message.content = RecordDict({"arrays": record(self.other), "config": config})
            yield message

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found = answers(replies)
        parts = [[each for each in found if (str(each[0]) in self.odd) == odd] for odd in (False, True)]
        first, self.other = (mean([m for _, m, _ in part], [w for _, _, w in part]) for part in parts)
        return record(first), None


class OwnProximal(FedAvg):
    """FedProx with a strength of its own for each client."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        clients = grid.client_ids()  # type: ignore[attr-defined]
        for message in super().configure_train(server_round, arrays, config, grid):
            own = config.copy()
            own["proximal-mu"] = 0.5 * clients[message.metadata.dst_node_id]
            message.content = RecordDict({"arrays": arrays, "config": own})
            yield message


class FedExP(FedAvg):
    """Jhunjhunwala et al. 2023: the server extrapolates, further the more the clients disagree."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.model = values(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return record(extrapolated(self.model, [model for _, model, _ in answers(replies)])), None


class Asking(FedAvg):
    """Asks every client who it is in each round, and trains the three with the largest ids."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        questions = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        ids = {
            reply.metadata.src_node_id: int(reply.content["config"]["client-id"])  # type: ignore[index, arg-type]
            for reply in grid.send_and_receive(questions)
        }
        assert ids == grid.client_ids()  # type: ignore[attr-defined]
        for message in super().configure_train(server_round, arrays, config, grid):
            if ids[message.metadata.dst_node_id] >= CLIENTS - 3:
                yield message


class Renamed(FedAvg):
    """Calls its records otherwise than clients do."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(arrayrecord_key="weights", configrecord_key="setup", **sampling)


class OwnStart(FedAvg):
    """Has a loop of its own."""

    def start(self, *args: Any, **named: Any) -> Any:
        raise AssertionError("nobody calls it")


class Listing(FedAvg):
    """Returns a list in place of a record."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return [1.0], None


class Raising(FedAvg):
    """Has a bug."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return {}["no such key"]


# Plain loops


def extrapolated(model: Model, trained: list[Model]) -> Model:
    moved = [{name: each[name] - model[name] for name in model} for each in trained]
    step = mean(moved, [1.0] * len(moved))
    squares = [sum(float((value.astype(np.float64) ** 2).sum()) for value in each.values()) for each in (*moved, step)]
    rate = max(1.0, sum(squares[:-1]) / (2 * len(moved) * squares[-1]))
    return {name: np.asarray(model[name] + rate * step[name], np.float32) for name in model}


class Reference:
    """Clients without messages."""

    def __init__(self) -> None:
        self.bench = bench_of(*SMALL)

    def start(self) -> Model:
        return self.bench.take(self.bench.names)

    def train(self, model: Model, client: int, number: int, mu: float = 0.0) -> tuple[Model, float]:
        trained, steps = local_sgd(
            self.bench, model, client, number, lambda name, own: mu * (own - torch.as_tensor(model[name]))
        )
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


def fedavg(ref: Reference) -> Model:
    model = ref.start()
    for number in range(1, ROUNDS + 1):
        model = mean(*ref.all(model, number))
    return model


def power_of_choice(ref: Reference) -> Model:
    model = ref.start()
    for number in range(1, ROUNDS + 1):
        worst = sorted(range(CLIENTS), key=lambda client, now=model: (-ref.rank(now, client), client))[:2]  # type: ignore[misc]
        model = mean(*ref.all(model, number, sorted(worst)))
    return model


def two_models(ref: Reference) -> Model:
    first = ref.start()
    other = {name: np.asarray(1.1 * value) for name, value in first.items()}
    for number in range(1, ROUNDS + 1):
        first = mean(*ref.all(first, number, (0, 2, 4)))
        other = mean(*ref.all(other, number, (1, 3, 5)))
    return first


def own_proximal(ref: Reference) -> Model:
    model = ref.start()
    for number in range(1, ROUNDS + 1):
        found = [ref.train(model, client, number, 0.5 * client) for client in range(CLIENTS)]
        model = mean([each for each, _ in found], [weight for _, weight in found])
    return model


def fedexp(ref: Reference) -> Model:
    model = ref.start()
    for number in range(1, ROUNDS + 1):
        model = extrapolated(model, ref.all(model, number)[0])
    return model


def asking(ref: Reference) -> Model:
    model = ref.start()
    for number in range(1, ROUNDS + 1):
        model = mean(*ref.all(model, number, range(CLIENTS - 3, CLIENTS)))
    return model


def run_on(engine: str, ray_address: str, folder: Path, strategy: type) -> Model:
    address = [] if engine == "flower" else [f"ray_address={ray_address}"]
    words = [*SMALL, *address, f"engine={engine}", f"save_dir={folder}", f"strategy={__name__}:{strategy.__name__}"]
    assert sim.main(words) == 0
    (run_dir,) = folder.iterdir()
    return load_file(run_dir / "checkpoints" / "round-000003" / "arrays.safetensors")


@pytest.mark.parametrize("engine", ["ray", "vectorized", "flower"])
@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (PowerOfChoice, power_of_choice),
        (TwoModels, two_models),
        (OwnProximal, own_proximal),
        (FedExP, fedexp),
        (Asking, asking),
        (Renamed, fedavg),
    ],
)
def test_a_published_strategy_gives_what_its_paper_says(
    engine: str, strategy: type, expected: Callable[[Reference], Model], ray_address: str, tmp_path: Path
) -> None:
    found, reference = run_on(engine, ray_address, tmp_path, strategy), expected(Reference())
    for name, array in reference.items():
        np.testing.assert_allclose(found[name], array, atol=2e-5, err_msg=name)
    plain = fedavg(Reference())
    if expected is not fedavg:  # or the strategy would not have been heard
        assert max(np.abs(plain[name] - reference[name]).max() for name in plain) > 1e-3


@pytest.mark.parametrize(
    ("strategy", "complaint"),
    [
        (OwnStart, "OwnStart has a start.. of its own, which would never be called"),
        (Listing, "strategy Listing.aggregate_train returned .list, NoneType.; return an ArrayRecord"),
        (
            Raising,
            r"strategy Raising cannot aggregate: KeyError: 'no such key'; .*test_published_strategies.py, line \d+",
        ),
    ],
)
def test_what_cannot_work_is_told_with_its_place(
    strategy: type, complaint: str, ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        run_on("ray", ray_address, tmp_path, strategy)
    assert re.search(complaint, capsys.readouterr().err)
