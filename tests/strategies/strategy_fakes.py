"""A grid of made-up nodes, made-up clients and a round loop: the strategies run without Flower's runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies import AggregationSchedule, Cohorts

Answer = Callable[[int, Message], RecordDict]  # client id, message -> content of the reply
GROUPS = {
    "embedding": ["item_embedding.weight"],
    "backbone": ["blocks.0.weight", "blocks.0.bias"],
    "router": ["router.weight"],
    "gate": ["gate"],
}
SHAPES: dict[str, tuple[int, ...]] = {
    # Not the order of the groups: a model's order is its own.
    "gate": (),
    "blocks.0.weight": (2, 3),
    "item_embedding.weight": (4, 2),
    "blocks.0.bias": (3,),
    "router.weight": (2, 2),
}
SHARED = ["embedding", "backbone"]


def schedule(warmup_rounds: int = 2, reference_order: bool = False) -> AggregationSchedule:
    """The product's order (all, then a part), or the reference document's (a part, then all)."""
    first, then = (SHARED, list(GROUPS)) if reference_order else (list(GROUPS), SHARED)
    return AggregationSchedule(GROUPS, warmup_rounds, first, then)


def f32(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


def record(arrays: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})


def model(seed: int = 0) -> ArrayRecord:
    rng = np.random.default_rng(seed)
    return record({name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()})


def values(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in arrays.items()}


def content(arrays: Mapping[str, Any], examples: float = 1, **metrics: Any) -> RecordDict:
    return RecordDict(
        {"arrays": record(arrays), "metrics": MetricRecord({"num-examples": examples, "loss": 1.0} | metrics)}
    )


def trained(client: int, message: Message) -> RecordDict:
    """A client that sends back the shared arrays, moved by an amount of its own; in an order of its own, too."""
    if message.metadata.message_type == "evaluate":
        return RecordDict({"metrics": MetricRecord({"num-examples": 1, "hr@10": float(client)})})
    config = message.content.config_records["config"]
    names = [name for group in cast(list[str], config["shared"]) for name in GROUPS[group]]
    rng = np.random.default_rng([client, cast(int, config["server-round"])])
    sent = values(message.content.array_records["arrays"])
    moved = {
        name: (sent[name] + rng.normal(scale=0.1, size=sent[name].shape)).astype(np.float32)
        for name in sorted(names, reverse=bool(client % 2))
    }
    return content(moved, examples=client + 1, loss=float(rng.uniform(1, 2)), norm_bit=1)


class FakeGrid(Grid):
    """Nodes that answer at once; ``clients``: node id -> client id, in the order in which nodes are listed."""

    def __init__(self, clients: Mapping[int, int], answer: Answer = trained) -> None:
        self.clients = dict(clients)
        self.answer = answer
        self.sent: list[Message] = []

    def client_ids(self, grid: Grid) -> Mapping[int, int]:
        return self.clients

    def get_node_ids(self) -> list[int]:
        return list(self.clients)

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return "the run"

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.sent += list(messages)
        return [str(i) for i in range(len(self.sent))]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._reply(self.sent[int(i)]) for i in message_ids]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.sent = list(messages)
        return [self._reply(message) for message in self.sent]

    def _reply(self, message: Message) -> Message:
        return Message(self.answer(self.clients[message.metadata.dst_node_id], message), reply_to=message)


def grid_of(count: int, answer: Answer = trained) -> FakeGrid:
    return FakeGrid({1000 + client: client for client in range(count)}, answer)


def ordered(strategy: Strategy, grid: FakeGrid) -> Cohorts:
    """All clients in each round, in the order of their ids: Flower's own sampling shuffles them."""
    return Cohorts(strategy, 1.0, 0, grid.client_ids)


def run_rounds(strategy: Strategy, grid: Grid, arrays: ArrayRecord, rounds: Iterable[int]) -> ArrayRecord:
    """Train for these rounds and return the last arrays."""
    for server_round in rounds:
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        new, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        arrays = arrays if new is None else new
    return arrays


def same_bytes(one: ArrayRecord, other: ArrayRecord) -> bool:
    return list(one) == list(other) and all(one[name].data == other[name].data for name in one)
