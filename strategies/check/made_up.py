"""A made-up federation in which a strategy is tried out in milliseconds: no model, no data, no engine.

Eight clients and five parameters in four groups. Rounds 1 and 2 share all of them, later ones the embedding and the
backbone, so that each trial meets a change of the schedule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

# Not public: a Message is given the identity of the process that makes it, and outside of a run there is none.
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from strategies.layers.course import grid_of_nodes
from strategies.layers.layer import AggregationSchedule, Stateless
from strategies.layers.partial import PartialAggregation
from strategies.state import load_state_arrays

CLIENTS = 8
FIRST_NODE = 1000
# It lists the nodes and can do no more; the trial hands the messages over itself.
NODES = grid_of_nodes(cast(Grid, None), {FIRST_NODE + client: client for client in range(CLIENTS)})
WARMUP_ROUNDS = 2
ROUNDS = 4
GROUPS = {
    "embedding": ["items.ids.weight"],
    "backbone": ["body.weight", "body.bias"],
    "router": ["router.weight"],
    "gate": ["gate"],
}
SHAPES: Mapping[str, tuple[int, ...]] = {
    "gate": (),
    "body.weight": (2, 3),
    "items.ids.weight": (6, 3),
    "body.bias": (3,),
    "router.weight": (2, 2),
}
Values = dict[str, NDArray[np.float32]]
# (client, round, the arrays it was sent) -> its shared arrays and its weight; None: it failed.
Client = Callable[[int, int, Values], tuple[Values, int] | None]


class Broken(Exception):
    """A demand is not met; the message says what was seen."""


def start_arrays() -> ArrayRecord:
    """Return the model before round 1."""
    rng = np.random.default_rng(0)
    return ArrayRecord({name: Array(np.asarray(rng.normal(size=s), np.float32)) for name, s in SHAPES.items()})


def values(arrays: ArrayRecord) -> Values:
    """Return named arrays as NumPy's."""
    return {name: array.numpy() for name, array in arrays.items()}


def schedule() -> AggregationSchedule:
    """Return the schedule of the trials: everything, then embedding and backbone."""
    return AggregationSchedule(GROUPS, WARMUP_ROUNDS, list(GROUPS), ["embedding", "backbone"])


def trained(client: int, server_round: int, sent: Values) -> tuple[Values, int]:
    """A client that moves each array by an amount of its own; client k has k + 1 examples."""
    rng = np.random.default_rng([client, server_round])
    moved = {name: value + rng.normal(scale=0.1, size=value.shape) for name, value in sent.items()}
    return {name: np.asarray(value, np.float32) for name, value in moved.items()}, client + 1


class Trial:
    """A strategy with partial aggregation around it, and the made-up clients.

    state: what ``state_arrays(trial.partial)`` returned in another trial; None: a fresh start.
    chance: number of the state in which the global generators are handed over, round by round.
    every: whether the strategy sees each reply, or their mean; None: as it says.

    ``arrays`` is the model now; ``probe`` has seen what the strategy itself did in the latest round.
    """

    def __init__(
        self,
        strategy: Strategy,
        arrays: ArrayRecord | None = None,
        state: Mapping[str, Any] | None = None,
        chance: int = 0,
        every: bool | None = None,
    ) -> None:
        self.chance = chance
        self.probe = _Probe(strategy)
        if every is not None:
            self.probe.needs_every_reply = strategy.needs_every_reply = every  # type: ignore[attr-defined]
        self.partial = PartialAggregation(self.probe, schedule())
        self.arrays = start_arrays() if arrays is None else arrays
        if state is not None:
            load_state_arrays(self.partial, state)

    def round(self, number: int, client: Client = trained, order: Sequence[int] | None = None) -> None:
        """Train one round; ``order``: clients in the order in which their replies are handed over, default 0, 1, ..."""
        with _as_in_a_run(number + ROUNDS * self.chance):
            messages = list(self.partial.configure_train(number, self.arrays, ConfigRecord(), NODES))
            by_client = {message.metadata.dst_node_id - FIRST_NODE: message for message in messages}
            shared = self.partial.schedule.shared_names(number)
            replies = [_reply(by_client[k], k, number, shared, client) for k in (order or sorted(by_client))]
            arrays, _ = self.partial.aggregate_train(number, replies)
        self.arrays = self.arrays if arrays is None else arrays

    def rounds(self, first: int, last: int, client: Client = trained) -> None:
        """Train several rounds."""
        for number in range(first, last + 1):
            self.round(number, client)

    def evaluate(self, number: int) -> MetricRecord | None:
        """Evaluate: client k reports ``hr@10`` of k / 10, with one example each."""
        with _as_in_a_run(number):
            messages = list(self.partial.configure_evaluate(number, self.arrays, ConfigRecord(), NODES))
            replies = [Message(_evaluated(message.metadata.dst_node_id), reply_to=message) for message in messages]
            return self.partial.aggregate_evaluate(number, replies)


class _Probe(Stateless):
    """Keeps what the strategy ``returned`` or ``raised`` in a round, before partial aggregation judges it."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy)
        self.returned: ArrayRecord | None = None
        self.raised: Exception | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.returned = self.raised = None
        try:
            return super().configure_train(server_round, arrays, config, grid)
        except Exception as error:
            self.raised = error
            raise

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        try:
            self.returned, metrics = super().aggregate_train(server_round, replies)
        except Exception as error:
            self.raised = error
            raise
        return self.returned, metrics


def _reply(message: Message, client: int, server_round: int, shared: Sequence[str], answer: Client) -> Message:
    sent = values(message.content.array_records["arrays"])
    given = answer(client, server_round, {name: sent[name] for name in sent if name in set(shared)})
    if given is None:
        return Message(Error(1, "made up to fail"), reply_to=message)
    arrays, examples = given
    # norm_bit is what Flower's client-side adaptive clipping adds.
    metrics = MetricRecord({"num-examples": examples, "loss": 1.0 + 0.1 * client, "norm_bit": client % 2})
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


def _evaluated(node: int) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"num-examples": 1, "hr@10": (node - FIRST_NODE) / 10})})


@contextmanager
def _as_in_a_run(server_round: int) -> Iterator[None]:
    """Within the block messages can be made, and the global generators, which Flower draws from, follow the round."""
    states = random.getstate(), np.random.get_state()
    identity = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    random.seed(server_round)
    np.random.seed(server_round)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = identity
