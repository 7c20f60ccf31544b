"""Strategies written from their papers for ``test_published_strategies``, as one writes them for Flower."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

CLIENTS = 6
Model = dict[str, np.ndarray]
Result = tuple[ArrayRecord | None, MetricRecord | None]
Reply = tuple[int, Model, float]  # node, arrays, weight


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


def plus(model: Model, step: Model, factor: float = 1.0) -> Model:
    return {name: np.asarray(value + factor * step[name], np.float32) for name, value in model.items()}


def second_model(model: Model) -> Model:
    """Where the second of two clusters begins."""
    rng = np.random.default_rng(0)
    return {name: np.asarray(value + 0.3 * rng.normal(size=value.shape), np.float32) for name, value in model.items()}


def answers(replies: Iterable[Message]) -> list[Reply]:
    return [
        (r.metadata.src_node_id, values(r.content.array_records["arrays"]), float(r.content["metrics"]["num-examples"]))  # type: ignore[index, arg-type]
        for r in replies
        if r.has_content()
    ]


class Remembering(FedAvg):
    """A base: keeps the model that was sent, and which client is behind which node."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.model = values(arrays)
        self.clients = {str(node): client for node, client in grid.client_ids().items()}  # type: ignore[attr-defined]
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Result:
        found = answers(replies)
        return (record(self.next_model(found)) if found else None), None

    def next_model(self, found: list[Reply]) -> Model:
        raise NotImplementedError

    def updates(self, found: list[Reply]) -> list[Model]:
        return [plus(model, self.model, -1.0) for _, model, _ in found]


class PowerOfChoice(FedAvg):
    """Cho et al. 2020: ask all candidates for their loss, train those with the largest."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        asked = [
            Message(RecordDict({"arrays": arrays, "config": ConfigRecord()}), node, "evaluate")
            for node in grid.get_node_ids()
        ]
        clients = grid.client_ids()  # type: ignore[attr-defined]
        loss = {
            clients[reply.metadata.src_node_id]: -float(reply.content["metrics"]["global-rank"])  # type: ignore[index, arg-type]
            for reply in grid.send_and_receive(asked)
        }
        chosen = sorted(loss, key=lambda client: (loss[client], client))[:2]
        messages = super().configure_train(server_round, arrays, config, grid)
        return [message for message in messages if clients[message.metadata.dst_node_id] in chosen]


class TwoModels(FedAvg):
    """Two clusters of clients with a model each: even clients train the one, odd ones the other."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.other: Model = {}

    def others(self, arrays: ArrayRecord, grid: Grid) -> list[int]:
        """Return the nodes of the second cluster."""
        clients = grid.client_ids()  # type: ignore[attr-defined]
        return [node for node, client in clients.items() if client % 2]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.first = values(arrays)
        self.other = self.other or second_model(self.first)
        self.second = [str(node) for node in self.others(arrays, grid)]
        for message in super().configure_train(server_round, arrays, config, grid):
            if str(message.metadata.dst_node_id) in self.second:
                message.content = RecordDict({"arrays": record(self.other), "config": config})
            yield message

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Result:
        found = answers(replies)
        parts = [[each for each in found if (str(each[0]) in self.second) == second] for second in (False, True)]
        self.first, self.other = (
            mean([model for _, model, _ in part], [weight for _, _, weight in part]) if part else before
            for part, before in zip(parts, (self.first, self.other), strict=True)
        )
        return record(self.first), None


class IFCA(TwoModels):
    """Ghosh et al. 2020: each client trains the model that serves it better."""

    def others(self, arrays: ArrayRecord, grid: Grid) -> list[int]:
        nodes = list(grid.get_node_ids())
        ranks = []
        for model in (arrays, record(self.other)):
            content = RecordDict({"arrays": model, "config": ConfigRecord({"split": "validation"})})
            replies = grid.send_and_receive([Message(content, node, "evaluate") for node in nodes])
            ranks.append({r.metadata.src_node_id: r.content["metrics"]["global-rank"] for r in replies})  # type: ignore[index]
        return [node for node in nodes if ranks[1][node] < ranks[0][node]]  # type: ignore[operator]


class OwnConfigs(FedAvg):
    """A base: one key of the config has a value of its own for each client."""

    key: str

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        clients = grid.client_ids()  # type: ignore[attr-defined]
        for message in super().configure_train(server_round, arrays, config, grid):
            own = config.copy()
            own[self.key] = self.value_of(clients[message.metadata.dst_node_id])
            message.content = RecordDict({"arrays": arrays, "config": own})
            yield message

    def value_of(self, client: int) -> float:
        raise NotImplementedError


class OwnProximal(OwnConfigs):
    """FedProx with a strength of its own for each client."""

    key = "proximal-mu"

    def value_of(self, client: int) -> float:
        return 0.5 * client


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


class FedExP(Remembering):
    """Jhunjhunwala et al. 2023: the server extrapolates, further the more the clients disagree."""

    def next_model(self, found: list[Reply]) -> Model:
        return extrapolated(self.model, [model for _, model, _ in found])


def extrapolated(model: Model, trained: list[Model]) -> Model:
    moved = [{name: each[name] - model[name] for name in model} for each in trained]
    step = mean(moved, [1.0] * len(moved))
    squares = [sum(float((value.astype(np.float64) ** 2).sum()) for value in each.values()) for each in (*moved, step)]
    return plus(model, step, max(1.0, sum(squares[:-1]) / (2 * len(moved) * squares[-1])))


class FedAvgM(Remembering):
    """Hsu et al. 2019: momentum at the server."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.velocity: Model = {}

    def next_model(self, found: list[Reply]) -> Model:
        step = mean(self.updates(found), [weight for *_, weight in found])
        self.velocity = plus(step, self.velocity, 0.9) if self.velocity else step
        return plus(self.model, self.velocity)


class FedYogi(Remembering):
    """Reddi et al. 2021: an adaptive server with an additive second moment."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.m: Model = {}
        self.v: Model = {}

    def next_model(self, found: list[Reply]) -> Model:
        step = mean(self.updates(found), [1.0] * len(found))
        for name, d in step.items():
            v = self.v.get(name, np.full_like(d, 1e-4))
            self.v[name] = v - np.float32(0.01) * d**2 * np.sign(v - d**2)
            self.m[name] = np.float32(0.9) * self.m.get(name, np.zeros_like(d)) + np.float32(0.1) * d
        return plus(self.model, {name: self.m[name] / (np.sqrt(self.v[name]) + 1e-2) for name in step}, 0.1)


class TrimmedMean(Remembering):
    """Yin et al. 2018: of each number the smallest and the largest value do not count."""

    def next_model(self, found: list[Reply]) -> Model:
        stacked = {name: np.sort([model[name] for _, model, _ in found], axis=0) for name in self.model}
        return {name: np.asarray(each[1:-1].mean(axis=0), np.float32) for name, each in stacked.items()}


class Mifa(Remembering):
    """Gu et al. 2021: the mean is over the latest update of every client, taking part or not."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.memory: Model = {}  # client/parameter -> its latest update

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for message in super().configure_train(server_round, arrays, config, grid):
            if (self.clients[str(message.metadata.dst_node_id)] + server_round) % 2:
                yield message

    def next_model(self, found: list[Reply]) -> Model:
        for (node, *_), update in zip(found, self.updates(found), strict=True):
            self.memory |= {f"{self.clients[str(node)]}/{name}": value for name, value in update.items()}
        latest = [self.memory.get(f"{client}/{name}") for name in self.model for client in range(CLIENTS)]
        rows = [latest[start : start + CLIENTS] for start in range(0, len(latest), CLIENTS)]
        steps = [sum(each for each in row if each is not None) for row in rows]
        return plus(self.model, dict(zip(self.model, steps, strict=True)), 1 / CLIENTS)  # type: ignore[arg-type]


class Stale(Remembering):
    """Xie et al. 2019, in rounds: odd clients are slow; their updates count a round later, and half."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.late: Model = {}

    def next_model(self, found: list[Reply]) -> Model:
        odd = [self.clients[str(node)] % 2 for node, *_ in found]
        updates = self.updates(found)
        fast = mean([update for update, slow in zip(updates, odd, strict=True) if not slow], [1.0] * odd.count(0))
        step = plus(fast, self.late, 0.5) if self.late else fast
        self.late = mean([update for update, slow in zip(updates, odd, strict=True) if slow], [1.0] * odd.count(1))
        return plus(self.model, step, 0.5)


class FedNova(Remembering):
    """Wang et al. 2020: updates are divided by the local steps, which clients (``Counting``) report in a record."""

    example_records: ClassVar = {"work": {"steps": 3.0}}

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Result:
        given = list(replies)
        self.steps = [float(reply.content["work"]["steps"]) for reply in given if reply.has_content()]  # type: ignore[index, arg-type]
        return super().aggregate_train(server_round, given)

    def next_model(self, found: list[Reply]) -> Model:
        weights = [weight for *_, weight in found]
        normal = [{n: u[n] / s for n in u} for u, s in zip(self.updates(found), self.steps, strict=True)]
        effective = sum(w * s for w, s in zip(weights, self.steps, strict=True)) / sum(weights)
        return plus(self.model, mean(normal, weights), effective)


class FedDyn(Remembering):
    """Acar et al. 2021: the server's part; ``Dynamic`` is the client's."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.h: Model = {}

    def next_model(self, found: list[Reply]) -> Model:
        drift = mean(self.updates(found), [1.0] * len(found))
        self.h = plus(self.h or {name: np.zeros_like(value) for name, value in drift.items()}, drift, -ALPHA)
        return plus(mean([model for _, model, _ in found], [1.0] * len(found)), self.h, -1 / ALPHA)


ALPHA = 0.3  # of FedDyn


class OwnRates(OwnConfigs):
    """Each client (``Rated``) has a learning rate of its own, the smaller the larger its id."""

    key = "rate"

    def value_of(self, client: int) -> float:
        return 1.0 / (1 + client)


class Asymmetric(Remembering):
    """Tells each client (``Telling``) a factor of its own and weighs by a norm that it reports: two further records."""

    example_records: ClassVar = {"told": {"norm": 2.0}}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for message in super().configure_train(server_round, arrays, config, grid):
            factor = 1.0 / (1 + self.clients[str(message.metadata.dst_node_id)])
            hint = ConfigRecord({"factor": factor})
            message.content = RecordDict({"arrays": arrays, "config": config, "hint": hint})
            yield message

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Result:
        given = list(replies)
        self.norms = [float(reply.content["told"]["norm"]) for reply in given if reply.has_content()]  # type: ignore[index, arg-type]
        return super().aggregate_train(server_round, given)

    def next_model(self, found: list[Reply]) -> Model:
        return mean([model for _, model, _ in found], [1 / norm for norm in self.norms])


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
