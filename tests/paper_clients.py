"""The clients' parts of the strategies in ``paper_strategies``."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from paper_strategies import ALPHA

from fedmoe.wire import ROWS
from fedmoe_client.learning.own_client import LocalRound, OwnClient, Parameters
from fedmoe_client.store.private import NamedArrays


class Counting(OwnClient):
    """Reports its local steps, for FedNova."""

    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        this.reply["work"] = MetricRecord({"steps": this.steps})
        return arrays


class Dynamic(OwnClient):
    """FedDyn's regularised loss: theta minus what the server sent, and the client's own linear term."""

    whole_table = True

    def step(self, this: LocalRound, parameters: Parameters) -> None:
        start = this.tensors(this.start, parameters)
        for name, parameter in parameters.items():
            own = torch.as_tensor(this.kept.get(name, np.float32(0.0)))
            extra = ALPHA * (parameter.detach() - start[name]) - own
            parameter.grad = extra if parameter.grad is None else parameter.grad + extra

    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        for name, value in trained.items():
            moved = ALPHA * (value - this.start[name])
            this.kept[name] = np.asarray(this.kept.get(name, np.float32(0.0)) - moved, np.float32)


class Rated(OwnClient):
    """Learns at a rate that the strategy sets for it."""

    def step(self, this: LocalRound, parameters: Parameters) -> None:
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad = float(this.config["rate"]) * parameter.grad

    def example_extra(self, arrays: NamedArrays) -> RecordDict:
        return RecordDict({"config": ConfigRecord({"rate": 0.5})})


class Telling(OwnClient):
    """Sends a part of its update, as large as a record of the message says, and tells how long it was."""

    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        factor = np.float32(this.extra["hint"]["factor"])
        before = {name: this.start[name][arrays.get(name + ROWS, ...)] for name in this.shared}
        moved = {name: factor * (arrays[name] - before[name]) for name in this.shared}
        norm = np.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in moved.values()))
        this.reply["told"] = MetricRecord({"norm": float(norm)})
        return arrays | {name: np.asarray(before[name] + moved[name], np.float32) for name in this.shared}

    def example_extra(self, arrays: NamedArrays) -> RecordDict:
        return RecordDict({"hint": ConfigRecord({"factor": 0.5})})
