"""A layer is a strategy around a strategy; a round, as the schedule has it, is handed through the layers."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError, nearest, reason_of
from fedmoe.modalities import selected

Models = dict[int, dict[str, Array]]  # node id -> the shared parameters that it was sent


@dataclass(frozen=True)
class Round:
    """One training round.

    Attributes:
        number: from 1.
        arrays: the shared parameters as they were sent, in the model's order; one of shape () has shape (1,).
        warmup: whether the round belongs to the warm-up.
        shared: names of the groups that are aggregated in it.
        groups: group -> names of its parameters, those of private groups too.
        own: node id -> its arrays, where the strategy sent it others than ``arrays``; known when all are sent.
    """

    number: int
    arrays: ArrayRecord
    warmup: bool = False
    shared: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own: Mapping[int, ArrayRecord] = field(default_factory=dict)

    def names(self, group: str) -> tuple[str, ...]:
        """Return the parameters of a group that the strategy sees in this round: all of them, or none."""
        return self.groups[group] if group in self.shared else ()


class AggregationSchedule:
    """Rounds 1 to ``warmup_rounds`` aggregate the groups ``warmup``, later rounds the groups ``shared``.

    groups: group -> names of its parameters; a group that the model does not have is an empty list. A parameter
        belongs to exactly one group.
    warmup_rounds: rounds of the warm-up, 0 or more.
    warmup, shared: names of groups, or patterns such as ``experts.*``, which may match none.

    Raises FedMoEError for an unknown group, a parameter in two groups, and a phase that would aggregate nothing.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[str]], warmup_rounds: int, warmup: Sequence[str], shared: Sequence[str]
    ) -> None:
        self.groups = {group: tuple(names) for group, names in groups.items()}
        self.names = tuple(name for names in self.groups.values() for name in names)
        self.warmup_rounds = warmup_rounds
        self._warmup = self._checked("warmup", warmup)
        self._shared = self._checked("shared", shared)
        for name, count in Counter(self.names).items():
            if count > 1:
                raise FedMoEError(f"parameter '{name}' is in {count} groups; put it into one")
        for round_, key in ((1, "warmup"), (warmup_rounds + 1, "shared")):
            if not self.shared_names(round_):
                filled = ", ".join(group for group, names in self.groups.items() if names) or "none"
                raise FedMoEError(
                    f"federation.{key if warmup_rounds else 'shared'}: these groups hold no parameter of this model, "
                    f"nothing would be aggregated; name one of {filled}"
                )

    def _checked(self, key: str, wanted: Sequence[str]) -> tuple[str, ...]:
        for group in wanted:
            if "*" not in group and group not in self.groups:
                raise FedMoEError(
                    f"federation.{key}: unknown group '{group}'{nearest(group, self.groups)}; "
                    f"groups are {', '.join(self.groups) or 'none'}"
                )
        return tuple(selected(wanted, self.groups))

    def shared_groups(self, server_round: int) -> list[str]:
        """Names of the groups aggregated in this round (counted from 1), in the order of ``groups``."""
        return list(self._warmup if server_round <= self.warmup_rounds else self._shared)

    def shared_names(self, server_round: int) -> list[str]:
        """Names of the parameters aggregated in this round."""
        return [name for group in self.shared_groups(server_round) for name in self.groups[group]]

    def round(self, number: int, arrays: ArrayRecord) -> Round:
        """Return a round in which ``arrays`` are sent to be aggregated."""
        shared = tuple(self.shared_groups(number))
        return Round(number, arrays, number <= self.warmup_rounds, shared, self.groups)

    def private_names(self, server_round: int) -> list[str]:
        """Names of the parameters that stay with the clients in this round."""
        shared = set(self.shared_names(server_round))
        return [name for name in self.names if name not in shared]


class Layer(Strategy):
    """A strategy around ``strategy``, to which it hands every call on; a subclass overrides what it changes.

    A layer that only changes the replies overrides :meth:`revised`. ``context`` is the latest training round: set by
    ``PartialAggregation``, or by the outermost layer where there is none.
    """

    needs_every_reply: bool = False  # what the layer wraps may: see ``needs_every_reply``
    means_only: bool = False  # whether a reply may hold arrays and metrics alone, of which the layer makes a mean
    context: Round | None = None
    poisson: bool = False  # whether each client must take part by a chance of its own

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def expect(self, clients: int) -> None:
        """Take note, before a round, of how many clients are connected in all."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a training round."""
        known = self.context or Round(server_round, arrays)
        if self.context is None or known.number != server_round or known.arrays is not arrays:
            tell(self, replace(known, number=server_round, arrays=arrays))
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new arrays and the aggregated metrics; None where nothing was aggregated."""
        if self.context is None:
            raise FedMoEError("aggregate_train was called before configure_train: there are no arrays to merge into")
        return self.strategy.aggregate_train(server_round, self.revised(self.context, list(replies)))

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        """Return the replies to a round as the wrapped strategy is to see them; errors among them, too."""
        return replies

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


class Stateless(Layer):
    """A layer whose attributes follow from settings and round: a checkpoint need not hold them."""

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


def tell(strategy: Strategy, sent: Round) -> None:
    """Set the attribute ``context`` of ``strategy``, and of what it wraps, wherever there is one."""
    for part in chain(strategy):
        if hasattr(part, "context"):
            part.context = sent


def weight_key(strategy: Strategy) -> str:
    """Return the metric that ``strategy``, or what it wraps, weighs replies by (``weighted_by_key``, as in Flower)."""
    return key_of(strategy, "weighted_by_key", "num-examples")


def key_of(strategy: Strategy, attribute: str, usual: str) -> str:
    """Return the name that ``strategy``, or what it wraps, has for a record or metric: an attribute, as in Flower."""
    keys = (getattr(part, attribute, None) for part in chain(strategy))
    return next((key for key in keys if isinstance(key, str)), usual)


def are_alike(messages: list[Message]) -> bool:
    """Whether all messages hold the same model and config, and nothing else."""
    contents = list({id(message.content): message.content for message in messages}.values())
    first = contents[0] if contents else RecordDict()
    return all(content.keys() <= {"arrays", "config"} for content in contents) and all(
        content["config"] == first["config"]
        and all(array is first.array_records["arrays"][name] for name, array in content.array_records["arrays"].items())
        for content in contents
    )


def other_models(messages: list[Message], sent: Round, arrays: ArrayRecord) -> Models:
    """Return node id -> the shared parameters that it was sent, of the nodes that were sent others than the model's."""
    models = {id(message.content): message.content.array_records["arrays"] for message in messages}
    shared = {key: {name: model[name] for name in arrays if name in sent.arrays} for key, model in models.items()}
    return {
        message.metadata.dst_node_id: shared[id(message.content)]
        for message in messages
        if any(array is not arrays[name] for name, array in shared[id(message.content)].items())
    }


def kind_of(message: Message) -> str:
    """Return what a message is for: "train", "evaluate" or "query"; behind a dot its type may name more."""
    return message.metadata.message_type.partition(".")[0]


def flat(array: Array) -> Array:
    """Return an array of shape () as one of shape (1,), any other as it is."""
    return array if array.shape else Array(array.numpy().reshape(1))


def fitted(array: Array, like: Array) -> Array:
    """Return ``array`` with the dtype and shape of ``like``; itself if it has them."""
    fits = array.dtype == like.dtype and tuple(array.shape) == tuple(like.shape)
    return array if fits else Array(array.numpy().astype(like.dtype).reshape(like.shape))


def has_more(reply: Message) -> bool:
    """Whether a reply holds records beside arrays and metrics: they belong to one client, and have no mean."""
    return reply.has_content() and len(reply.content) > len(("arrays", "metrics"))


def shown(reply: Message, expected: Mapping[str, Array]) -> Message:
    """Return a checked reply as a strategy sees it."""
    if reply.has_content():
        arrays = reply.content.array_records["arrays"]  # the guard's own record
        arrays.update({name: flat(arrays[name]) for name, like in expected.items() if not like.shape})
    return reply


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn what a user's own code raises into a FedMoEError that names its line; ``what``: whose code, and when."""
    try:
        yield
    except FedMoEError:
        raise
    except Exception as error:
        layers = str(Path(__file__).parent)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(layers)]
        own = [frame for frame in frames if "site-packages" not in frame.filename]
        place = f"; {own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}: {own[-1].line}" if own else ""
        raise FedMoEError(f"{what}: {reason_of(error)}{place}") from error
