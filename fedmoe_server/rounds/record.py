"""What the round loop carries from round to round, and what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, ArrayRecord

Metrics = dict[str, float | None]
SELECTION_METRIC = "ndcg@10"
GLOBAL_PREFIX = "global-"


@dataclass(frozen=True)
class Best:
    """The best model so far: its round, its validation NDCG@10 and the server's arrays of that round."""

    round: int
    score: float
    arrays: dict[str, Array]


@dataclass
class LoopState:
    """Everything on the server that decides how the run goes on; a checkpoint holds exactly this and the strategy.

    Attributes:
        arrays: the server's copy of all parameters after ``round``.
        round: rounds done.
        best: the best model so far, None before the first evaluation.
        stalled: evaluations since the best one.
        history: one record a round, as in ``metrics.jsonl``.
    """

    arrays: ArrayRecord
    round: int = 0
    best: Best | None = None
    stalled: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def judge(self, score: float) -> bool:
        """Take note of the current model's validation score; return whether it is the best so far."""
        if self.best is None or score > self.best.score:
            # A dict of the same Array objects: they are never changed in place, so nothing needs copying.
            self.best = Best(self.round, score, dict(self.arrays.items()))
            self.stalled = 0
            return True
        self.stalled += 1
        return False

    def chosen(self) -> tuple[ArrayRecord, int]:
        """Return the best model's arrays, or the latest where no evaluation has chosen any, and their round."""
        if self.best is None:
            return self.arrays, self.round
        return ArrayRecord(self.best.arrays), self.best.round


@dataclass(frozen=True)
class Result:
    """The end of a run. Metrics are means over all clients that replied.

    Attributes:
        arrays: the server's arrays of the best round. Values that clients keep private are not among what is
            restored: there every client goes on with the value it has at the end.
        best_round: the round they are from.
        rounds: rounds done.
        stopped_early: whether patience ran out before ``num_rounds``.
        validation, test: metric name -> value, plain names with the clients' private parameters, names with
            ``global-`` with the server's copy of everything.
        history: one record a round, as in ``metrics.jsonl``.
        bytes_down, bytes_up: payload of the whole run, the final evaluation included.
        failed_replies: number of failed answers over all rounds and the final evaluation.
    """

    arrays: ArrayRecord
    best_round: int
    rounds: int
    stopped_early: bool
    validation: Metrics
    test: Metrics
    history: list[dict[str, Any]]
    bytes_down: int
    bytes_up: int
    failed_replies: int


def plain_metrics(record: Mapping[str, Any] | None) -> Metrics:
    """Return the scalar metrics of a MetricRecord as floats that JSON can hold: not finite becomes None."""
    values = {} if record is None else {k: v for k, v in record.items() if isinstance(v, int | float)}
    return {key: float(value) if math.isfinite(value) else None for key, value in values.items()}


def split_global(metrics: Mapping[str, float | None]) -> tuple[Metrics, Metrics]:
    """Split metrics into those with the clients' private parameters and those of the server's model alone."""
    personal = {k: v for k, v in metrics.items() if not k.startswith(GLOBAL_PREFIX)}
    shared = {k.removeprefix(GLOBAL_PREFIX): v for k, v in metrics.items() if k.startswith(GLOBAL_PREFIX)}
    return personal, shared
