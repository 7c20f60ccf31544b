"""One's own strategy in ten lines: go a part of the way from the model to the mean of the replies.

    PYTHONPATH=examples/strategies python sim.py federation.strategy=server_step:ServerStep \
        federation.strategy_parameters='{eta: 0.5}'

The rate is called ``eta``, as in Flower's own strategies, so ``federation.server_schedule`` works for it too.
"""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg


class ServerStep(FedAvg):
    """model + eta * (mean of the replies - model). eta: above 0, usually at most 1."""

    needs_every_reply = False  # their mean is enough, so they may be summed where the clients are

    def __init__(self, eta: float = 1.0, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.eta = eta
        self.current_arrays = ArrayRecord()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any) -> Any:
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        mean, metrics = super().aggregate_train(server_round, replies)
        pairs = {name: (self.current_arrays[name].numpy(), array.numpy()) for name, array in (mean or {}).items()}
        stepped = {name: Array(old + self.eta * (new - old)) for name, (old, new) in pairs.items()}
        return (ArrayRecord(stepped) if mean else None), metrics
