"""A made-up federation in which a strategy is tried out in milliseconds: no model, no data, no engine.

Eight clients and five parameters in four groups. Rounds 1 and 2 share all of them, later ones the embedding and the
backbone, so that each trial meets a change of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedmoe.check.command import as_in_a_run
from strategies.layers.course import grid_of_nodes
from strategies.layers.layer import AggregationSchedule, Stateless, chain, kind_of
from strategies.layers.partial import PartialAggregation
from strategies.layers.replies import Valued, record_of
from strategies.state import load_state_arrays

CLIENTS = 8
FIRST_NODE = 1000
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
    every: whether the strategy sees each reply, or their mean.

    ``arrays`` is the model now; ``probe`` has seen what the strategy itself did in the latest round.
    """

    def __init__(
        self,
        strategy: Strategy,
        arrays: ArrayRecord | None = None,
        state: Mapping[str, Any] | None = None,
        chance: int = 0,
        every: bool = True,
    ) -> None:
        self.chance = chance
        self.probe = _Probe(strategy)
        if not every:
            self.probe.needs_every_reply = strategy.needs_every_reply = False  # type: ignore[attr-defined]
        self.partial = PartialAggregation(self.probe, schedule())
        self.arrays = start_arrays() if arrays is None else arrays
        if state is not None:
            load_state_arrays(self.partial, state)

    @property
    def model(self) -> Values:
        """The model now, a copy."""
        return {name: value.copy() for name, value in values(self.arrays).items()}

    def round(self, number: int, client: Client = trained, order: Sequence[int] | None = None) -> None:
        """Train one round; ``order``: clients in the order in which their replies are handed over, default 0, 1, ..."""
        with as_in_a_run(number + ROUNDS * self.chance):
            clients = self._clients(number, client)
            messages = list(self.partial.configure_train(number, self.arrays, ConfigRecord(), _grid(clients)))
            by_client = {message.metadata.dst_node_id - FIRST_NODE: message for message in messages}
            asked = [by_client[k] for k in (order or sorted(by_client)) if k in by_client]
            arrays, _ = self.partial.aggregate_train(number, map(clients.answer, asked))
        self.arrays = self.arrays if arrays is None else arrays

    def rounds(self, first: int, last: int, client: Client = trained) -> Trial:
        """Train several rounds; return the trial."""
        for number in range(first, last + 1):
            self.round(number, client)
        return self

    def evaluate(self, number: int) -> MetricRecord | None:
        """Evaluate: client k reports ``hr@10`` of k / 10, with one example each."""
        with as_in_a_run(number):
            clients = self._clients(number, trained)
            messages = self.partial.configure_evaluate(number, self.arrays, ConfigRecord(), _grid(clients))
            return self.partial.aggregate_evaluate(number, [clients.answer(message) for message in messages])

    def _clients(self, number: int, client: Client) -> _Clients:
        said = (getattr(part, "example_records", None) for part in chain(self.probe))
        records: Mapping[str, Mapping[str, Any]] = next((each for each in said if each is not None), {})
        return _Clients(number, self.partial.schedule.shared_names(number), client, records)


@dataclass(frozen=True)
class Stage:
    """A round to which all clients replied: the model before and after it, and what the strategy itself did.

    shared, private: names of the parameters.
    """

    number: int
    before: Values
    model: Values
    shared: Sequence[str]
    private: Sequence[str]
    returned: ArrayRecord | None
    raised: Exception | None


@dataclass(frozen=True)
class Subject:
    """What is tried out. make: returns a fresh strategy."""

    make: Callable[[], Strategy]

    def trial(self, *given: Any, **how: Any) -> Trial:
        """Return a trial of a fresh strategy; given, how: see ``Trial``."""
        return Trial(self.make(), *given, **how)

    @cached_property
    def course(self) -> list[Stage]:
        """The rounds of a trial, up to the first that the strategy spoilt."""
        trial, stages = self.trial(), list[Stage]()
        for number in range(1, ROUNDS + 1):
            before, failed = trial.model, False
            try:
                trial.round(number)
            except Exception:
                if trial.probe.raised is None and trial.probe.returned is None:
                    raise
                failed = True
            schedule, did = trial.partial.schedule, (trial.probe.returned, trial.probe.raised)
            names = schedule.shared_names(number), schedule.private_names(number)
            stages.append(Stage(number, before, trial.model, *names, *did))
            if failed:
                break
        return stages

    @property
    def trained(self) -> Values:
        """The model after all rounds."""
        return self.course[-1].model


def first_change(one: Values, other: Values, names: Iterable[str] | None = None) -> str | None:
    """Return the first of these parameters, of all without names, of which not every byte is the same."""
    return next((name for name in names or one if one[name].tobytes() != other[name].tobytes()), None)


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


@dataclass
class _Clients:
    """The made-up clients of a round; ``shared``: names of the shared parameters, ``records``: what they add.

    Where a message holds further ArrayRecords, as for SCAFFOLD's control variate, they send one alike.
    """

    number: int
    shared: Sequence[str]
    client: Client
    records: Mapping[str, Mapping[str, Any]]
    pushed: list[Message] = field(default_factory=list)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self.answer(message) for message in messages]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        before = len(self.pushed)
        self.pushed += messages
        return [str(place) for place in range(before, len(self.pushed))]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.answer(self.pushed[int(place)]) for place in message_ids]

    def answer(self, message: Message) -> Message:
        client, kind = message.metadata.dst_node_id - FIRST_NODE, kind_of(message)
        if kind == "query":
            return Message(RecordDict({"config": ConfigRecord({"client-id": client})}), reply_to=message)
        if kind == "evaluate":
            return Message(_evaluated(client), reply_to=message)
        sent = values(message.content.array_records["arrays"])
        given = self.client(client, self.number, {name: sent[name] for name in sent if name in set(self.shared)})
        if given is None:
            return Message(Error(1, "made up to fail"), reply_to=message)
        arrays, examples = given
        # norm_bit is what Flower's client-side adaptive clipping adds.
        metrics = MetricRecord({"num-examples": examples, "loss": 1.0 + 0.1 * client, "norm_bit": client % 2})
        record = record_of({name: Valued(np.asarray(value)) for name, value in arrays.items()})
        more: dict[str, Any] = {
            name: (ConfigRecord if any(isinstance(value, str) for value in each.values()) else MetricRecord)(dict(each))
            for name, each in self.records.items()
        }
        more |= {key: each.copy() for key, each in message.content.array_records.items() if key != "arrays"}
        return Message(RecordDict({**more, "arrays": record, "metrics": metrics}), reply_to=message)


def _grid(clients: _Clients) -> Grid:
    return grid_of_nodes(cast(Grid, clients), {FIRST_NODE + client: client for client in range(CLIENTS)})


def _evaluated(client: int) -> RecordDict:
    """Return the metrics of an evaluation, as real clients call them: the model of the server, and one's own."""
    metrics = {"hr@10": client / 10, "ndcg@10": client / 20, "rank": 9.0 - client}
    more = {f"global-{name}": value for name, value in metrics.items()}
    return RecordDict({"metrics": MetricRecord({"num-examples": 1, **metrics, **more})})
