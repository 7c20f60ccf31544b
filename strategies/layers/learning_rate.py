"""The course of the server's learning rate over the rounds."""

from __future__ import annotations

import math
from typing import Any, Literal

from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError
from strategies.layers.layer import Round, Stateless, chain

RATES = ("eta", "server_learning_rate")  # FedAdam, FedYogi, FedAdagrad; FedAvgM


class ServerLearningRate(Stateless):
    """Set the learning rate of ``strategy`` before each aggregation.

    schedule "constant": the strategy's own rate, untouched. "cosine": in round r = 1, 2, ... the rate is
    base * (1 + cos(pi * (r - 1) / num_rounds)) / 2: the base in the first round, falling to 0 with the end of the last.
    The rate is the attribute ``eta`` or ``server_learning_rate`` of the strategy or of what it wraps.

    Raises FedMoEError for "cosine" and a strategy with no such attribute.
    """

    needs_every_reply = False

    def __init__(self, strategy: Strategy, schedule: Literal["constant", "cosine"], num_rounds: int) -> None:
        super().__init__(strategy)
        self.schedule = schedule
        self.num_rounds = num_rounds
        if schedule == "cosine":
            self._owner, self._attribute = _find_rate(strategy)
            self._base = float(getattr(self._owner, self._attribute))
            if hasattr(self._owner, "server_opt"):
                # FedAvgM ignores its rate if it was built with rate 1 and no momentum.
                self._owner.server_opt = True

    def rate(self, server_round: int) -> float:
        """The cosine's rate in a round, counted from 1."""
        progress = min(server_round - 1, self.num_rounds) / self.num_rounds
        return self._base * (1.0 + math.cos(math.pi * progress)) / 2.0

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        """Return the replies as they are, with the rate of this round set."""
        if self.schedule == "cosine":
            setattr(self._owner, self._attribute, self.rate(sent.number))
        return replies


def _find_rate(strategy: Strategy) -> tuple[Any, str]:
    for part in chain(strategy):
        for attribute in RATES:
            if isinstance(getattr(part, attribute, None), int | float):
                return part, attribute
    raise FedMoEError(
        f"federation.server_schedule: strategy {type(strategy).__name__} has no server learning rate "
        f"({' or '.join(RATES)}); set server_schedule to constant"
    )
