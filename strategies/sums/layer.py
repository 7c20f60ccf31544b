"""The layer of exact sums: clients are asked for integers, and the layers inside see the mean that their sum gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import Shapes
from strategies.layers.layer import Stateless, chain
from strategies.layers.partial import PartialAggregation
from strategies.layers.talk import TalkingGrid
from strategies.needs import needs_every_reply, refuse_comparing
from strategies.privacy.distributed import DistributedNoise
from strategies.sums.reply_sum import ReplySum

ALTERNATIVES = "fedavg, fedavgm, fedadam, lazyadam, fedyogi, fedadagrad, fedprox, or rowwise around one of them"


class ExactSums(Stateless):
    """Ask the clients of ``strategy`` for integers (``fedmoe.sums``), training and evaluation alike.

    The round loop adds their replies up (``reducer`` where the clients live, ``mean`` at the server) and hands on one
    reply, the weighted mean. A part of the strategy that has an attribute ``touched`` is told how many clients touched
    each row of a table, and how many clients there were.

    bits, norm, weight: see ``Terms``; the number of clients is that of a round's messages. noise: what clients add to
    their updates; None: nothing. ``terms`` and ``shapes`` hold those of the latest messages, of the arrays that are
    added up.
    """

    needs_every_reply = False

    def __init__(
        self, strategy: PartialAggregation, bits: int, norm: float, weight: int, noise: DistributedNoise | None = None
    ) -> None:
        super().__init__(strategy)
        self.noise = noise
        self.partial = strategy
        self.bits, self.norm, self.weight = bits, norm, weight
        self.terms = Terms(bits, 1, norm, weight)  # terms that cannot be are an error before the first round
        self.shapes: Shapes = {}
        self._round = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a training round. FedMoEError: the clients would start from different models or configs."""
        view = cast(Grid, TalkingGrid(grid, _summed_alone))
        messages = list(self.partial.configure_train(server_round, arrays, config, view))
        if not self.partial.alike:
            raise FedMoEError(
                "privacy.sum_bits: the strategy sends clients different models, configs or further records, whose "
                "answers have no sum; send all the same, or set sum_bits to 0"
            )
        self._round = server_round
        shapes = {name: tuple(array.shape) for name, array in self.partial.expected(server_round).items()}
        return self._asked(messages, shapes)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the mean, see ``mean``."""
        return self.partial.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of an evaluation."""
        view = cast(Grid, TalkingGrid(grid, _summed_alone))
        return self._asked(list(self.partial.configure_evaluate(server_round, arrays, config, view)), {})

    def reducer(self) -> Callable[[], ReplySum]:
        """Return what makes the object that adds up replies to the latest messages, anywhere."""
        return partial(ReplySum, self.terms, self.shapes)

    def mean(self, replies: Iterable[Message]) -> list[Message]:
        """Return the weighted mean of the replies to the latest messages, which may be sums, and the errors."""
        found = self.reducer()()
        for reply in replies:
            found.add(reply)
        for part in chain(self.partial) if found.total.clients else ():
            if hasattr(part, "touched"):
                part.touched = {name: counts / found.total.clients for name, counts in found.total.touched.items()}
        return found.mean(self.partial.expected(self._round) if self.shapes else {})

    def _asked(self, messages: list[Message], shapes: Shapes) -> list[Message]:
        self.shapes = shapes
        self.terms = Terms(self.bits, max(1, len(messages)), self.norm, self.weight)
        if self.noise is not None and shapes:
            self.terms = self.noise.terms(self.terms, sum(prod(shape) for shape in shapes.values()))
        for content in {id(message.content): message.content for message in messages}.values():
            content.config_records["config"].update(self.terms.to_config())
        return messages


def exact_sums(strategy: PartialAggregation, settings: Settings, noise: DistributedNoise | None = None) -> ExactSums:
    """Return the layer that the settings describe. FedMoEError: with noise, the strategy compares replies."""
    privacy = settings.privacy
    if noise is not None:
        refuse_comparing(strategy, "privacy")
    weight = 1 if noise is not None else largest_weight(settings)
    return ExactSums(strategy, privacy.sum_bits or 0, privacy.update_norm, weight, noise)


def content_with_mean(strategy: Strategy) -> bool:
    """Return whether a strategy is content with the mean; one that weighs rows by their clients is told the counts."""
    for part in chain(strategy):
        if hasattr(part, "touched"):
            part.needs_every_reply = False  # type: ignore[attr-defined]  # the counts come with the mean
    return not needs_every_reply(strategy)


def content_with_sums(strategy: Strategy) -> Strategy:
    """Return a strategy that is content with the mean. FedMoEError, with the alternatives: it needs every reply."""
    if not content_with_mean(strategy):
        raise FedMoEError(
            f"privacy.sum_bits: {type(list(chain(strategy))[-1]).__name__} needs every client's reply, and only their "
            f"sum is known; use {ALTERNATIVES}, or set sum_bits to 0"
        )
    return strategy


def largest_weight(settings: Settings) -> int:
    """Return the largest weight that one user can have; a client that weighs more counts as this."""
    training, federation = settings.training, settings.federation
    windows = (training.max_windows or None) if training.windows == "all" else 1
    if federation.client_weight == "equal":
        return 1
    most = federation.guards.max_examples
    targets = most if windows is None else windows * settings.model.max_seq_len
    return min(most, targets if federation.client_weight == "examples" else max(1, round(10 * targets**0.5)))


def _summed_alone(messages: Iterable[Message]) -> list[Message]:
    """Return a strategy's own questions; FedMoEError for those that clients would answer singly."""
    asked = list(messages)
    if any(message.metadata.message_type.partition(".")[0] != "query" for message in asked):
        raise FedMoEError(
            "privacy.sum_bits: the strategy asks clients beside the round, and would see their single answers: leave "
            "one out"
        )
    return asked
