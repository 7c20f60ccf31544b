"""Strategies with one defect each, by the demand that they do not meet; and one without."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Strategy

from strategies import PartialAggregation, chain
from strategies.layers.layer import Round, Stateless


class Good(FedAvg):
    """Nothing wrong with it; a base whose subclasses change the arrays."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return self.without_replies(), metrics
        named = {name: array.numpy() for name, array in arrays.items()}
        return _record(self.changed(named, [r for r in replies if r.has_content()], server_round)), metrics

    def changed(self, mean: dict[str, np.ndarray], replies: list[Message], server_round: int) -> dict[str, np.ndarray]:
        return mean

    def without_replies(self) -> ArrayRecord | None:
        return None


class Raises(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return {name: mean[name] for name in ("gate", *mean)}  # the gate is not there any more after the warm-up


class LosesAName(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return {name: array for name, array in mean.items() if name != "body.bias"}


class AddsAName(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return mean | {"round": np.ones(1)}


class Transposes(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return {name: array.T for name, array in mean.items()}


class Truncates(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return {name: (100 * array).astype(np.int64) for name, array in mean.items()}


class DividesByZero(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        with np.errstate(invalid="ignore"):
            return mean | {"body.bias": 0 * mean["body.bias"] / 0}


class ForgetsToNormalise(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return {name: array * _weights(replies).sum() / 36 for name, array in mean.items()}


class InverseWeights(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        shares = 1 / _weights(replies)
        return _combined(replies, shares / shares.sum())


class TheFirstCountsTwice(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        shares = _weights(replies) * ([2] + [1] * (len(replies) - 1))
        return _combined(replies, shares / shares.sum())


class ReachesBehind(Good):
    """Looks for partial aggregation around itself and changes the arrays kept there: all it is given are copies."""

    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        for found in gc.get_objects():
            if isinstance(found, PartialAggregation) and self in chain(found) and found._model is not None:
                found._model["router.weight"] = Array(np.zeros((2, 2), np.float32))
        return mean


class HidesItsState(Good):
    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.smoothed = _smoothing()

    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return {name: self.smoothed(name, array) for name, array in mean.items()}


class KeepsWhatNoCheckpointHolds(Good):
    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.rng = np.random.default_rng(0)


class WantsAllReplies(Good):
    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        if 0 < sum(reply.has_error() for reply in replies) < len(replies):
            raise RuntimeError("one of the replies is an error")
        return super().aggregate_train(server_round, replies)


class ZeroWithoutReplies(Good):
    """Decays to zero when nobody answers."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any) -> Any:
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def without_replies(self) -> ArrayRecord:
        return _record({name: 0 * array.numpy() for name, array in self.current_arrays.items()})


class NoEvaluation(Good):
    def aggregate_evaluate(self, server_round: int, replies: Any) -> MetricRecord | None:
        return None


class SumsMetrics(Good):
    def aggregate_evaluate(self, server_round: int, replies: Any) -> MetricRecord:
        return MetricRecord({"hr@10": sum(reply.content["metrics"]["hr@10"] for reply in replies)})


class OwnLoop(Good):
    def start(self, *args: Any, **named: Any) -> Any:
        return super().start(*args, **named)


class GlobalNoise(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return {name: array + np.random.normal(scale=1e-6, size=array.shape) for name, array in mean.items()}


class FrozenTable(Good):
    """Puts the item table back as it was."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any) -> Any:
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        return mean | {"items.ids.weight": self.current_arrays["items.ids.weight"].numpy()}


class ARoundOld(Good):
    """Returns what the round before has aggregated."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.before: dict[str, np.ndarray] = {}

    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        returned = {name: self.before.get(name, array) for name, array in mean.items()}
        self.before = mean
        return returned


class SaysThatTheMeanWillDo(Good):
    """A median."""

    needs_every_reply = False

    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        arrays = [reply.content["arrays"] for reply in replies]
        return {name: np.median([record[name].numpy() for record in arrays], axis=0) for name in mean}


class SquaresWeights(Good):
    def changed(self, mean: Any, replies: Any, server_round: int) -> Any:
        shares = _weights(replies) ** 2
        return _combined(replies, shares / shares.sum())


class LosesRecords(Stateless):
    """Around another strategy; hands on arrays and metrics alone."""

    def __init__(self) -> None:
        super().__init__(FedAvg())

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        kept = []
        for reply in replies:
            bare = copy.copy(reply)
            if reply.has_content():
                bare.content = RecordDict({name: reply.content[name] for name in ("arrays", "metrics")})
            kept.append(bare)
        return kept


DEFECTS: dict[type[Strategy], str] = {
    LosesRecords: "records of the replies are kept",
    OwnLoop: "a loop of its own",
    GlobalNoise: "chance",
    FrozenTable: "every parameter is trained",
    ARoundOld: "the round's own replies",
    SaysThatTheMeanWillDo: "needs_every_reply is true",
    SquaresWeights: "weights: once",
    Raises: "runs",
    LosesAName: "names are kept",
    AddsAName: "names are kept",
    Transposes: "shapes and types are kept",
    Truncates: "shapes and types are kept",
    DividesByZero: "results are finite",
    ForgetsToNormalise: "weights: common factor",
    InverseWeights: "weights: direction",
    TheFirstCountsTwice: "order of the replies is irrelevant",
    ReachesBehind: "private groups are untouched",
    HidesItsState: "resuming equals going on",
    KeepsWhatNoCheckpointHolds: "resuming equals going on",
    WantsAllReplies: "one lost reply is tolerated",
    ZeroWithoutReplies: "a round without replies",
    NoEvaluation: "evaluation",
    SumsMetrics: "evaluation",
}


def _record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def _weights(replies: list[Message]) -> np.ndarray:
    return np.array([reply.content["metrics"]["num-examples"] for reply in replies], float)


def _combined(replies: list[Message], shares: np.ndarray) -> dict[str, np.ndarray]:
    arrays = [reply.content["arrays"] for reply in replies]
    return {
        name: sum(share * record[name].numpy() for share, record in zip(shares, arrays, strict=True))
        for name in arrays[0]
    }


def _smoothing() -> Callable[[str, np.ndarray], np.ndarray]:
    """Return a function that remembers: a callable is taken for a setting, what it holds is lost on a resume."""
    kept: dict[str, np.ndarray] = {}

    def smoothed(name: str, array: np.ndarray) -> np.ndarray:
        kept[name] = 0.5 * (kept.get(name, array) + array)
        return kept[name]

    return smoothed
