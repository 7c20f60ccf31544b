"""The base of the strategy wrappers: everything is handed on to the wrapped strategy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


class Wrapper(Strategy):
    """A strategy that hands every call on to ``strategy``; a subclass overrides what it changes."""

    needs_every_reply: bool = False  # what it wraps may: see ``reply_mean.needs_every_reply``

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a training round."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new arrays and the aggregated metrics; None where nothing was aggregated."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of an evaluation."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The aggregated metrics of an evaluation; None where nothing was aggregated."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log the settings of the wrapped strategy."""
        self.strategy.summary()


class Stateless(Wrapper):
    """A wrapper whose attributes follow from settings and round: a checkpoint need not hold them."""

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what :meth:`state_dict` returned: nothing."""


def chain(strategy: Strategy) -> Iterator[Strategy]:
    """Yield ``strategy``, what it wraps, what that wraps, ... (the attribute ``strategy``, as in Flower's wrappers)."""
    part: object = strategy
    while isinstance(part, Strategy):
        yield part
        part = getattr(part, "strategy", None)


def weight_key(strategy: Strategy) -> str:
    """Return the metric that ``strategy``, or what it wraps, weighs replies by (``weighted_by_key``, as in Flower)."""
    keys = (getattr(part, "weighted_by_key", None) for part in chain(strategy))
    return next((key for key in keys if isinstance(key, str)), "num-examples")
