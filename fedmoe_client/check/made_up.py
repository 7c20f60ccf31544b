"""A made-up federation in which a client of one's own is tried out: a tiny catalogue, the real client code, no engine.

In the first round all parameters are shared, later the embedding and the backbone, so that each trial meets a change of
the schedule. The server's model differs from round to round, whatever the clients answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.check.command import as_in_a_run
from fedmoe.loading import load_settings, to_run_config
from fedmoe.settings import Settings
from fedmoe.wire import NamedArrays, is_packed, pack, packed_bytes, to_record, unpack
from fedmoe_client.app import NOT_EXTRA
from fedmoe_client.learning.client import Answer, FedMoEClient, carry_out, workbench
from fedmoe_client.learning.own_client import LocalRound, OwnClient, Parameters
from fedmoe_client.stacked import app as stacked
from fedmoe_client.store.private import InContext
from model.build import initial_arrays

CLIENTS = 2
ROUNDS = 3
SHARED = {1: ["*"], 2: ["embedding", "backbone"], 3: ["embedding", "backbone"]}
# Plain SGD, which SCAFFOLD and its like need; no dropout, which differs between a client alone and one in a stack.
WORDS = (
    "dataset=synthetic data.synthetic.users=4 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=6 "
    "memory_size=6 memory_refresh=3 num_negatives=5 dropout=0 optimizer=sgd momentum=0 weight_decay=0 batch_size=1 "
    "local_epochs=1 max_windows=2 learning_rate=0.2"
).split()
Make = Callable[[], OwnClient]


def made_up_settings(name: str, parameters: Mapping[str, Any]) -> Settings:
    """Return the settings of the trials, with this client."""
    settings = load_settings(WORDS)[0]
    training = settings.training.model_copy(update={"client": name, "client_parameters": dict(parameters)})
    return settings.model_copy(update={"training": training})


class Watched(OwnClient):
    """A client of one's own, and what its hooks were told and did in one round."""

    def __init__(self, own: OwnClient) -> None:
        self.own = own
        self.whole_table = own.whole_table
        self.this: LocalRound | None = None
        self.before: NamedArrays = {}  # a copy of what the training started from
        self.given: NamedArrays = {}  # what ``sent`` was handed
        self.asked = False  # whether ``sent`` has returned; False: a hook raised
        self.gave: NamedArrays | None = None  # what it returned
        self.trained: NamedArrays = {}
        self.flat = False  # whether a term of the loss had no gradient

    def before_round(self, this: LocalRound) -> None:
        """Remember what the round started from."""
        self.this, self.before = this, {name: array.copy() for name, array in this.start.items()}
        self.own.before_round(this)

    def loss(self, this: LocalRound, parameters: Parameters) -> Tensor | None:
        """Look whether the term has a gradient."""
        term = self.own.loss(this, parameters)
        self.flat |= term is not None and not term.requires_grad
        return term

    def step(self, this: LocalRound, parameters: Parameters) -> None:
        """Hand on."""
        self.own.step(this, parameters)

    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        """Remember what was trained."""
        self.trained = {name: array.copy() for name, array in trained.items()}
        self.own.after_round(this, trained)

    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        """Remember what came in and what went out."""
        self.given = {name: array.copy() for name, array in arrays.items()}
        gave = self.own.sent(this, arrays)
        self.asked, self.gave = True, gave
        return gave

    def ranks_with(self, kept: Mapping[str, NDArray[Any]]) -> NamedArrays:
        """Hand on."""
        return self.own.ranks_with(kept)


@dataclass(frozen=True)
class Visit:
    """One client's round. kept: what the hooks left in ``this.kept``; error: of a hook, or of what came after them."""

    client: int
    number: int
    watched: Watched
    kept: Mapping[str, Any]
    error: Exception | None
    arrays: NamedArrays  # answered and stored
    numbers: Mapping[str, str]  # the metrics and records of numbers that were answered


@dataclass
class Trial:
    """Clients of a run.

    make: returns a fresh client of one's own; start: the model of round 1; fresh: another process for each visit;
    chance: number of the state of the global generators.
    """

    settings: Settings
    make: Make
    start: NamedArrays
    fresh: bool = False
    chance: int = 0
    states: dict[int, RecordDict] = field(default_factory=lambda: {client: RecordDict() for client in range(CLIENTS)})

    def __post_init__(self) -> None:
        self.run_config = to_run_config(self.settings)
        self.bench = workbench(self.run_config)
        self.own = self.make()

    def rounds(self, order: Sequence[int] = tuple(range(CLIENTS))) -> Iterator[Visit]:
        """Yield each client's visit in each round, up to the first with an error."""
        for number in range(1, ROUNDS + 1):
            for client in order:
                visit = self.visit(client, number)
                yield visit
                if visit.error is not None:
                    return

    def visit(self, client: int, number: int) -> Visit:
        """Let a client train in a round."""
        if self.fresh:
            self.own = self.make()
        watched = Watched(self.own)
        self.bench.own_client = watched
        fed = FedMoEClient(self.bench, client, InContext(self.states[client]), simulated=True)
        error, answer = None, None
        with as_in_a_run(100 * self.chance + 10 * number + client), torch.random.fork_rng(devices=[]):
            torch.manual_seed(100 * self.chance + 10 * number + client)
            try:
                answer = carry_out(fed, "train", pack(self.server(number)), self.config(number), self.extra(number))
            except Exception as raised:  # the client is the user's
                error = raised
        arrays, numbers = ({}, {}) if answer is None else _contents(answer, self.states[client])
        return Visit(client, number, watched, dict(fed.kept), error, arrays, numbers)

    def evaluate(self, client: int) -> Answer:
        """Let a client rank its held-out item after the last round."""
        self.bench.own_client = self.own
        fed = FedMoEClient(self.bench, client, InContext(self.states[client]), simulated=True)
        return carry_out(fed, "evaluate", pack(self.server(ROUNDS)), {**self.config(ROUNDS), "split": "test"})

    def stored(self, client: int) -> Mapping[str, NDArray[Any]]:
        """Return what a client of one's own has kept."""
        fed = FedMoEClient(self.bench, client, InContext(self.states[client]), simulated=True)
        fed.load_own(())
        return fed.kept

    def stack(self, number: int) -> dict[int, NamedArrays]:
        """Let all clients train a round in one stack; return the arrays that each answered and stored."""
        self.bench.own_client = self.own
        arrays, config = to_record(self.server(number)), ConfigRecord(self.config(number))
        messages, contexts = [], []
        with as_in_a_run(number):
            for client, state in self.states.items():
                content = {"arrays": arrays, "config": config, **dict(self.extra(number))}
                messages.append(Message(RecordDict(content), client + 1, "train"))
                node: dict[str, Any] = {"partition-id": client, "num-partitions": CLIENTS}
                contexts.append(Context(1, client + 1, node, state, {**self.run_config, "simulated": True}))
            replies = stacked.train(messages, contexts, reduce=False)
        found = {}
        for client, reply in enumerate(replies):
            sent = _arrays({name: each for name, each in reply.content.items() if name != "metrics"})
            found[client] = sent | _arrays(self.states[client])
        return found

    def config(self, number: int) -> dict[str, Any]:
        """Return the config of a round's messages, with what the strategy would add to it."""
        added: Mapping[str, Any] = self._example(number).config_records.get("config", {})
        return {"shared": SHARED[number], "server-round": number, **added}

    def extra(self, number: int) -> RecordDict:
        """Return what the strategy would send beside model and config."""
        return RecordDict({name: each for name, each in self._example(number).items() if name not in NOT_EXTRA})

    def _example(self, number: int) -> RecordDict:
        shared = set(self.bench.names_in(tuple(SHARED[number])))
        return self.make().example_extra({n: each for n, each in self.server(number).items() if n in shared})

    def server(self, number: int) -> NamedArrays:
        """Return the server's model in a round."""
        rng = np.random.default_rng(number)
        moved = {name: each + 0.01 * rng.normal(size=each.shape) for name, each in self.start.items()}
        moved["items.ids.weight"][0] = 0.0
        return {name: np.asarray(each, np.float32) for name, each in moved.items()}


@dataclass(frozen=True)
class Subject:
    """make: returns a fresh object of the class that is checked."""

    settings: Settings
    make: Make

    @cached_property
    def start(self) -> NamedArrays:
        """The model of round 1."""
        return initial_arrays(self.settings, workbench(to_run_config(self.settings)).dataset)

    def trial(self, **how: Any) -> Trial:
        """Return a fresh federation of such clients."""
        return Trial(self.settings, self.make, self.start, **how)

    @cached_property
    def after(self) -> Trial:
        """A federation after all rounds, in which nothing was out of the ordinary."""
        return self.trial()

    @cached_property
    def visits(self) -> list[Visit]:
        """What came of these rounds."""
        return list(self.after.rounds())


def _contents(answer: Answer, state: RecordDict) -> tuple[NamedArrays, dict[str, str]]:
    """Return the arrays that were answered and stored, and the numbers that were answered, by their places."""
    arrays = {f"arrays/{name}": array for name, array in (answer.arrays or {}).items()}
    numbers = {name: repr(value) for name, value in answer.metrics.items()}
    for name, record in answer.records.items():
        if not isinstance(record, ArrayRecord):
            numbers |= {f"{name}/{key}": repr(value) for key, value in record.items()}
    return arrays | _arrays(dict(answer.records)) | _arrays(dict(state)), numbers


def _arrays(records: Mapping[str, Any]) -> NamedArrays:
    """Return the arrays of records by name; a packed record's as well."""
    found: NamedArrays = {}
    for name, record in records.items():
        if not isinstance(record, ArrayRecord):
            continue
        each = (
            unpack(packed_bytes(record)) if is_packed(record) else {key: array.numpy() for key, array in record.items()}
        )
        found |= {f"{name}/{key}": array for key, array in each.items()}
    return found
