"""SCAFFOLD: control variates at the server and the clients correct the drift of the local steps. Client and strategy.

Sai Praneeth Karimireddy, Satyen Kale, Mehryar Mohri, Sashank Reddi, Sebastian Stich, Ananda Theertha Suresh: SCAFFOLD:
Stochastic Controlled Averaging for Federated Learning, ICML 2020, algorithm 1 with option II. With x the server's model
and c its control variate, client i of N with c_i (both begin as 0) takes K local steps

    y  <-  y - rate * (gradient(y) - c_i + c)
    c_i+  =  c_i - c + (x - y) / (K * rate)

and the server, over the S clients of the round,

    x  <-  x + eta * mean(y - x)        c  <-  c + S / N * mean(c_i+ - c_i)

    python sim.py quick client=examples.clients.scaffold:ScaffoldClient strategy=examples.clients.scaffold:Scaffold \
        strategy_parameters.clients=943 item_updates=dense

The control variates are one more ArrayRecord of each message, "control", both ways; so a message is twice as large.
The local steps must be plain SGD: with momentum or Adam, (x - y) / (K * rate) is no mean of gradients. The gradients
are the clipped ones. Parameters that are private take no part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedmoe.errors import FedMoEError
from fedmoe.wire import NamedArrays
from fedmoe_client.learning.own_client import LocalRound, OwnClient, Parameters

CONTROL = "control"


class ScaffoldClient(OwnClient):
    """The client's part; it keeps c_i, and takes c from, and sends c_i+ - c_i in, the record "control"."""

    whole_table = True  # c moves also the rows of items that the client does not meet

    def before_round(self, this: LocalRound) -> None:
        training = this.settings.training
        if training.optimizer != "sgd" or training.momentum or training.weight_decay:
            raise FedMoEError("SCAFFOLD needs plain SGD: set optimizer=sgd, momentum=0 and weight_decay=0")
        if CONTROL not in this.extra:
            raise FedMoEError(
                "SCAFFOLD's control variate did not come: set strategy=examples.clients.scaffold:Scaffold"
            )

    def step(self, this: LocalRound, parameters: Parameters) -> None:
        for name, control in _control(this).items():
            correction = torch.as_tensor(control - this.kept.get(name, np.float32(0.0))).to(parameters[name].device)
            gradient = parameters[name].grad
            parameters[name].grad = correction if gradient is None else gradient + correction

    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        by = this.steps * this.learning_rate
        change = {  # c_i+ - c_i
            name: np.asarray((this.start[name] - trained[name]) / by - control, np.float32)
            for name, control in _control(this).items()
        }
        this.kept.update({name: this.kept.get(name, np.float32(0.0)) + value for name, value in change.items()})
        this.reply[CONTROL] = ArrayRecord({name: Array(value) for name, value in change.items()})

    def example_extra(self, arrays: NamedArrays) -> RecordDict:
        control = {name: Array(np.full_like(value, 0.01)) for name, value in arrays.items()}
        return RecordDict({CONTROL: ArrayRecord(control)})


def _control(this: LocalRound) -> NamedArrays:
    """Return c of the shared parameters; on its way a number had the shape (1,)."""
    sent = this.extra[CONTROL]
    return {name: sent[name].numpy().reshape(this.start[name].shape) for name in this.shared}


class Scaffold(FedAvg):
    """The server's part.

    clients: N, the clients of the federation; eta: the server's learning rate.
    """

    needs_every_reply = True

    def __init__(self, clients: int, eta: float = 1.0, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.clients, self.eta = clients, eta
        self.model: dict[str, np.ndarray] = {}
        self.control: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.model = {name: array.numpy() for name, array in arrays.items()}
        # Private parameters may have become shared since, and the other way round.
        self.control = {name: self.control.get(name, np.zeros_like(value)) for name, value in self.model.items()}
        for message in super().configure_train(server_round, arrays, config, grid):
            message.content[CONTROL] = ArrayRecord({name: Array(value) for name, value in self.control.items()})
            yield message

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        answered = [reply for reply in replies if reply.has_content()]
        if not answered:
            return None, None
        share = len(answered) / self.clients
        for name, value in self.model.items():
            moved = np.mean([reply.content["arrays"][name].numpy() - value for reply in answered], axis=0)
            changes = [reply.content[CONTROL][name].numpy().reshape(value.shape) for reply in answered]
            self.model[name] = np.asarray(value + self.eta * moved, value.dtype)
            self.control[name] = np.asarray(self.control[name] + share * np.mean(changes, axis=0), value.dtype)
        metrics = self.train_metrics_aggr_fn([reply.content for reply in answered], self.weighted_by_key)
        return ArrayRecord({name: Array(value) for name, value in self.model.items()}), metrics
