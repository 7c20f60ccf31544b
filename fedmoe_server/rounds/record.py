"""The values of a run: a round, its failures, the end, and the state that goes from round to round.

``to_json`` gives the lines of ``metrics.jsonl`` and ``result.json``; ``from_json`` reads them, those of older versions
too: what is missing has its default, what is unknown is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord, Message

from fedmoe.errors import FailureKind
from strategies.layers.replies import Valued

Metrics = Mapping[str, float | None]
SELECTION_METRIC = "ndcg@10"
GLOBAL_PREFIX = "global-"
NAMED_FAILURES = 3  # in one line


@dataclass(frozen=True)
class _Value:
    """A value that JSON can hold."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields by name."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the value that ``to_json`` described. Raises TypeError if a field without a default is missing."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, _Value):
        return value.to_json()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Sender(_Value):
    """Who sent, or did not send, a reply. client: its client id, None where it is not known; node: its node id."""

    client: int | None
    node: int

    @property
    def name(self) -> str:
        """The client id, or the node's where no client is known."""
        return f"node {self.node}" if self.client is None else str(self.client)


@dataclass(frozen=True)
class Failure(Sender):
    """A client that was asked and gave no usable reply.

    Attributes:
        stage: what it was asked for: ``train``, ``validation``, ``test`` or ``query``.
        reason: why it failed, one line.
        kind: what kind of failure it is.
    """

    stage: str
    reason: str
    kind: FailureKind = FailureKind.RAISED

    @property
    def said(self) -> str:
        """The reason as people read it."""
        return f"reply refused: {self.reason}" if self.kind is FailureKind.REFUSED else self.reason

    def __str__(self) -> str:
        who = self.name if self.client is None else f"client {self.client}"
        return f"{who} ({self.stage}): {self.said}"

    def to_json(self) -> dict[str, Any]:
        """Return all fields by name, the kind as a word."""
        return super().to_json() | {"kind": self.kind.word}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the failure; a record without a kind is of a version that did not tell it."""
        word = values.get("kind", FailureKind.RAISED.word)
        return super().from_json({**values, "kind": next(kind for kind in FailureKind if kind.word == word)})


@dataclass(frozen=True)
class Clipped(Sender):
    """A reply that was scaled down. norm: of its update, as it came; bound: what the norm may be."""

    norm: float
    bound: float


@dataclass(frozen=True)
class Exchange:
    """The outcome of one exchange of messages with clients.

    Attributes:
        sent: number of clients asked.
        replies: everything that came back, error replies included (strategies expect to see those).
        failures: the clients that failed, sorted by client.
        bytes_down, bytes_up: payload sent to and received from all clients.
        dropped: nodes whose replies were ignored: late ones to an earlier message, or second ones.
        problem: why the whole exchange failed, None if it did not.
    """

    sent: int
    replies: Sequence[Message]
    failures: tuple[Failure, ...] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    dropped: tuple[int, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class RoundRecord(_Value):
    """A round that is done: a line of ``metrics.jsonl``.

    Attributes:
        phase: ``warmup`` or ``main``.
        shared: groups of parameters that were aggregated.
        clients: number of clients asked to train.
        train: the clients' mean training metrics; empty if the round failed.
        clipped: replies that were scaled down.
        validation: mean metrics of an evaluation, those of the server's model alone with ``global-``; None without one.
        best: whether the model is the best one so far.
        privacy: the round's entry of the privacy ledger, None in a run without.
        failure: why the round left the model as it was, None if it did not fail.
        validation_failure: why the model could not be judged, None if it could or was not to be.
        failed: the clients that failed.
        dropped: who sent replies that were ignored: late ones to an earlier message, or second ones.
        bytes_down, bytes_up: payload sent to and received from all clients.
        seconds: duration; phases: that of ``waiting`` for clients, ``training`` and ``evaluation``.
    """

    round: int
    phase: str = "main"
    shared: tuple[str, ...] = ()
    clients: int = 0
    train: Metrics = field(default_factory=dict)
    clipped: tuple[Clipped, ...] = ()
    validation: Metrics | None = None
    best: bool = False
    privacy: Mapping[str, float] | None = None
    failure: str | None = None
    validation_failure: str | None = None
    failed: tuple[Failure, ...] = ()
    dropped: tuple[Sender, ...] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all fields by name, ``privacy`` in a private run alone."""
        values = super().to_json()
        return values if self.privacy is not None else {k: v for k, v in values.items() if k != "privacy"}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the record of a line."""
        parts: dict[str, type[_Value]] = {"clipped": Clipped, "failed": Failure, "dropped": Sender}
        read = {key: tuple(part.from_json(each) for each in values.get(key, ())) for key, part in parts.items()}
        return super().from_json({**values, **read})


@dataclass(frozen=True)
class Result(_Value):
    """The end of a run: ``result.json``. Metrics are means over all clients that replied.

    Attributes:
        status: ``completed``, ``failed`` or, without a file, ``unfinished``.
        error: why the run failed.
        stopped_early: whether patience or the privacy budget ran out before ``num_rounds``.
        rounds: rounds done.
        best_round: the round whose model is reported.
        validation, test: metrics by name, as ``personalised`` with the clients' private parameters and as ``global``
            with the server's copy of everything.
        new: likewise of the withheld items, among all items and, with ``among-new-``, among the withheld ones.
        bytes_down, bytes_up: payload of the whole run, the final evaluation included.
        failed_replies: number of failed answers over all rounds and the final evaluation.
        failed_rounds: rounds that left the model as it was.
        final_clients: clients that were asked in the final evaluation, None where it is not known.
        sampled: how many of them were asked for their validation items, None: all.
        final_failures: those that gave no answer to it: they are not in the means.
        seconds: duration of the whole run, the parts before a resume included; None if it is not known.
        baselines: what the run folder held to compare with.
    """

    status: str = "unfinished"
    error: str | None = None
    stopped_early: bool = False
    rounds: int = 0
    best_round: int | None = None
    validation: Mapping[str, Metrics] = field(default_factory=dict)
    test: Mapping[str, Metrics] = field(default_factory=dict)
    new: Mapping[str, Metrics] = field(default_factory=dict)
    bytes_down: int | None = None
    bytes_up: int | None = None
    failed_replies: int = 0
    failed_rounds: tuple[int, ...] = ()
    final_clients: int | None = None
    sampled: int | None = None
    final_failures: tuple[Failure, ...] = ()
    seconds: float | None = None
    baselines: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a completed run, or those of a failed one, which has no figures."""
        values = super().to_json()
        if self.status == "failed":
            return {key: values[key] for key in ("status", "error", "baselines")}
        gone = {"error"} if self.new else {"error", "new"}
        return {key: value for key, value in values.items() if key not in gone}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the result of a file."""
        failures = tuple(Failure.from_json(each) for each in values.get("final_failures", ()))
        return super().from_json({**values, "final_failures": failures})


@dataclass(frozen=True)
class Best:
    """The best model so far: its round, its validation NDCG@10, and arrays and strategy's state as they were judged."""

    round: int
    score: float
    arrays: dict[str, Array]
    strategy: Mapping[str, np.ndarray] = field(default_factory=dict)  # see ``strategies.state_arrays``


@dataclass
class LoopState:
    """Everything on the server that decides how the run goes on; a checkpoint holds exactly this and the strategy.

    Attributes:
        arrays: the server's copy of all parameters after ``round``.
        round: rounds done.
        best: the best model so far, None before the first evaluation.
        stalled: evaluations since the best one.
        history: the rounds that are done.
    """

    arrays: ArrayRecord
    round: int = 0
    best: Best | None = None
    stalled: int = 0
    history: list[RoundRecord] = field(default_factory=list)

    def judge(self, score: float, strategy: Mapping[str, np.ndarray]) -> bool:
        """Take note of the current model's validation score; return whether it is the best so far, which is copied.

        strategy: the strategy's state with which it was evaluated.
        """
        if self.best is None or score > self.best.score:
            self.best = Best(self.round, score, {name: Valued(a.numpy()) for name, a in self.arrays.items()}, strategy)
            self.stalled = 0
            return True
        self.stalled += 1
        return False

    def chosen(self) -> tuple[ArrayRecord, int]:
        """Return the best model's arrays, or the latest where no evaluation has chosen any, and their round."""
        if self.best is None:
            return self.arrays, self.round
        return ArrayRecord(self.best.arrays), self.best.round


def list_arrays(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return named arrays as the record that travels, in their order."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def list_failures(failures: Sequence[Failure]) -> str:
    """Return the first failures in words, and how many more there are."""
    more = f"; and {len(failures) - NAMED_FAILURES} more" if len(failures) > NAMED_FAILURES else ""
    return "; ".join(str(failure) for failure in failures[:NAMED_FAILURES]) + more


def split_global(metrics: Metrics) -> dict[str, Metrics]:
    """Split metrics into those with the clients' private parameters and those of the server's model alone."""
    return {
        "personalised": {k: v for k, v in metrics.items() if not k.startswith(GLOBAL_PREFIX)},
        "global": {k.removeprefix(GLOBAL_PREFIX): v for k, v in metrics.items() if k.startswith(GLOBAL_PREFIX)},
    }


def experts_of(metrics: Metrics) -> list[str]:
    """Return the names of the experts that training metrics tell of, in their order."""
    weights = [key.removeprefix("router-") for key in metrics if key.startswith("router-")]
    return [name for name in weights if name not in ("entropy", "sequence")]  # the sequence: the backbone's share
