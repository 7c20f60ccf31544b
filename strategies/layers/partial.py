"""Partial aggregation: a layer that shows a strategy the shared parameters and keeps the private ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError
from strategies.layers.layer import (
    AggregationSchedule,
    Models,
    Round,
    Stateless,
    are_alike,
    blamed,
    chain,
    fitted,
    flat,
    has_more,
    key_of,
    kind_of,
    other_models,
    shown,
    tell,
    weight_key,
)
from strategies.layers.replies import MAX_EXAMPLES, Clipping, Guard, Refusal, TableRows, Valued, record_of, values_of
from strategies.layers.reply_mean import ReplyMean, clients_of, mean_of_checked, uncounted
from strategies.layers.talk import GuardedGrid
from strategies.needs import needs_every_reply
from strategies.state import change_parameters

RECORDS = {"arrayrecord": "arrays", "configrecord": "config"}  # what clients call model and config


class PartialAggregation(Stateless):
    """Aggregate with ``strategy`` the parameters that ``schedule`` shares in a round, and keep all others as they are.

    Messages carry all parameters, and the names of the shared groups in config["shared"]; replies carry the shared
    parameters only. A private array comes out of a round as the very same array. ``refusals`` holds the replies to the
    latest training or evaluation that were refused (see ``strategies.layers.replies``).

    max_examples: the largest weight that a reply may claim.
    min_reply_fraction: where a smaller share of the clients asked sent a reply that passes, or none did, nothing is
        aggregated, and the strategy does not hear of the round's replies. 0: it hears of them in any case.
    means: whether replies may be means of several clients, as a simulation's hosts make them.
    in_place: whether a table that the layer has returned may be changed in place in a later round, where the strategy
        changes some rows: who keeps an earlier model then keeps a copy.

    The wrapped strategy sees arrays of shape () as (1,): NumPy turns the former into numbers, which Flower's clipping
    cannot change in place, so that they would escape it. Its results are given the model's dtype again: FedAdam and
    q-FedAvg return float64 for float32.
    """

    needs_every_reply = False

    def __init__(
        self,
        strategy: Strategy,
        schedule: AggregationSchedule,
        max_examples: int = MAX_EXAMPLES,
        min_reply_fraction: float = 0.0,
        means: bool = False,
    ) -> None:
        super().__init__(strategy)
        self.schedule = schedule
        self.max_examples = max_examples
        self.min_reply_fraction = min_reply_fraction
        self.means = means
        self.in_place = False
        self.refusals: list[Refusal] = []
        self._tables: dict[str, Array] = {}  # that the layer has made of such rows
        self._weight_key = weight_key(strategy)
        self._called = f"strategy {type(list(chain(strategy))[-1]).__name__}"
        self._every = needs_every_reply(strategy)
        self._means_only = any(getattr(part, "means_only", False) for part in chain(strategy))
        self._keys = tuple(key_of(strategy, f"{key}_key", name) for key, name in RECORDS.items())
        self._model: ArrayRecord | None = None  # all parameters as they were sent in this round
        self._asked = 0  # clients that they were sent to
        self._own: Models = {}  # where clients were sent others than the model's
        self.alike = True  # whether all clients of the round were sent the same, and nothing beside model and config
        self._names: list[str] | None = None  # the parameters that the state of the wrapped strategy is made for

    @property
    def clippings(self) -> list[Clipping]:
        """The replies of the latest round that were cut down, see ``OutlierClipping``."""
        return [found for part in chain(self.strategy) for found in getattr(part, "clippings", ())]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a training round, with all parameters. FedMoEError: a parameter is in no group, or not there."""
        sent = self._round(server_round, arrays)
        self._fit_state(sent, arrays)
        tell(self.strategy, sent)
        self._model = arrays.copy()
        with blamed(f"round {server_round}: {self._called}.configure_train"):
            view = self._talk(grid, sent, arrays)
            messages = list(self.strategy.configure_train(server_round, sent.arrays, config.copy(), view))
        self._asked = len(messages)
        messages = self._completed(messages, sent, arrays)
        self.alike = are_alike(messages)
        self._own = {} if self.alike else other_models(messages, sent, arrays)
        own = {node: record_of({n: flat(a) for n, a in model.items()}) for node, model in self._own.items()}
        tell(self.strategy, replace(sent, own=own))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """All parameters, the shared ones aggregated; None if too few replies pass, or nothing was aggregated.

        Raises FedMoEError if the wrapped strategy cannot aggregate, or returns other parameters or infinite ones.
        """
        expected = self.expected(server_round)
        checked, self.refusals = self._guard(expected, self._own, self.means).checked(replies)
        passed = sum(clients_of(reply) for reply in checked if reply.has_content())
        if self.min_reply_fraction and (passed == 0 or passed < self.min_reply_fraction * self._asked):
            return None, None
        if not self._every and self.alike and not any(map(has_more, checked)):
            checked = mean_of_checked(checked, expected, self._weight_key)
        name = f"round {server_round}: {self._called}"
        with blamed(f"{name} cannot aggregate"):
            returned: Any = self.strategy.aggregate_train(server_round, [shown(reply, expected) for reply in checked])
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], ArrayRecord | None)):
            raise FedMoEError(
                f"{name}.aggregate_train returned {_described(returned)}; return an ArrayRecord (or None) and a "
                "MetricRecord (or None)"
            )
        arrays, metrics = returned
        if arrays is None:
            return None, metrics
        assert self._model is not None  # as expected
        judged = _judged(f"{name} returned", arrays, expected)
        whole = {name: self._whole(name, a) if isinstance(a, TableRows) else a for name, a in judged.items()}
        return record_of(dict(self._model.items()) | whole), metrics

    def _whole(self, name: str, rows: TableRows) -> Array:
        """Return a table in which a strategy has changed some rows: as a copy, or in place."""
        mine = self.in_place and self._tables.get(name) is rows.server
        # A view: who tells arrays apart by their identity sees another one.
        table = values_of(rows.server).view() if mine else rows.server.numpy()
        table[rows.ids] = rows.rows
        self._tables[name] = whole = Valued(table)
        return whole

    def reducer(self, server_round: int) -> Callable[[], ReplyMean] | None:
        """Return what makes the object that merges replies to the latest training messages where the clients live.

        None where the wrapped strategy needs every reply, see ``needs_every_reply``, or has not sent all clients the
        same: then it sees each of them.
        """
        if self._every or not self.alike:
            return None
        return partial(ReplyMean, self.expected(server_round), self._weight_key, self.max_examples)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of an evaluation, with all parameters. FedMoEError: a parameter is in no group, or not there."""
        sent = self._round(server_round, arrays)
        split = str(config.get("split", "validation"))
        with blamed(f"round {server_round}: {self._called}.configure_evaluate"):
            view = self._talk(grid, sent, arrays, split)
            messages = list(self.strategy.configure_evaluate(server_round, sent.arrays, config.copy(), view))
        return self._completed(messages, sent, arrays, split)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The aggregated metrics of an evaluation; refused replies are in ``refusals``."""
        checked, self.refusals = self._guard(None, means=self.means).checked(replies)
        with blamed(f"round {server_round}: {self._called}.aggregate_evaluate"):
            return self.strategy.aggregate_evaluate(server_round, [uncounted(reply) for reply in checked])

    def _guard(self, expected: Mapping[str, Array] | None, own: Models | None = None, means: bool = False) -> Guard:
        return Guard(expected, self._weight_key, self.max_examples, means, own or {}, self._means_only)

    def _talk(self, grid: Grid, sent: Round, arrays: ArrayRecord, split: str = "") -> Grid:
        """Return the grid through which the strategy may ask clients; its replies pass the guards of a round's."""
        expected = {name: array for name, array in arrays.items() if name in sent.arrays}
        ready = partial(self._completed, sent=sent, arrays=arrays, split=split)
        models = partial(other_models, sent=sent, arrays=arrays)
        return cast(Grid, GuardedGrid(grid, ready, expected, models, self._guard))

    def _completed(
        self, messages: Iterable[Message], sent: Round, arrays: ArrayRecord, split: str = ""
    ) -> list[Message]:
        """Put all parameters and the names of the shared groups into messages, one new content for each old one.

        split: of the held-out items, for the messages of an evaluation. FedMoEError: two messages to one client.
        """
        given = list(messages)
        twice = [node for node, n in Counter(message.metadata.dst_node_id for message in given).items() if n > 1]
        if twice:
            raise FedMoEError(
                f"{self._called} sends node {twice[0]} two messages at once, a client answers one; send the other by "
                "grid.send_and_receive in configure_train"
            )
        contents = {(id(message.content), kind_of(message) == "query"): message.content for message in given}
        full = {key: _full_content(each, sent, arrays, self._keys, key[1]) for key, each in contents.items()}
        for message in given:
            message.content = full[id(message.content), kind_of(message) == "query"]
            if kind_of(message) == "evaluate":
                message.content.config_records["config"].setdefault("split", split or "validation")
        return given

    def _round(self, number: int, arrays: ArrayRecord) -> Round:
        """Return the round in which these arrays, all of the model, are sent."""
        known, names = set(self.schedule.names), set(self.schedule.shared_names(number))
        for name in arrays:
            if name not in known:
                raise FedMoEError(f"parameter '{name}' of the model is in no group; put it into one")
        for name in self.schedule.names:
            if name not in arrays:
                raise FedMoEError(f"parameter '{name}' is in a group but not in the model's arrays")
        shared = record_of({name: flat(array) for name, array in arrays.items() if name in names})
        return self.schedule.round(number, shared)

    def _fit_state(self, sent: Round, arrays: ArrayRecord) -> None:
        """Fit the wrapped strategy's state to this round's parameters."""
        if self._names is None:
            # A state just loaded from a checkpoint is made for the parameters of the round before.
            before = set(self.schedule.shared_names(max(sent.number - 1, 1)))
            self._names = [name for name in arrays if name in before]
        if self._names != list(sent.arrays):
            old = {name: flat(arrays[name]).shape for name in self._names}
            change_parameters(self.strategy, old, sent.arrays)
            self._names = list(sent.arrays)

    def expected(self, server_round: int) -> dict[str, Array]:
        """Return the arrays that replies must have, as they were sent."""
        if self._model is None:
            raise FedMoEError("aggregate_train was called before configure_train: there are no arrays to merge into")
        names = set(self.schedule.shared_names(server_round))
        return {name: array for name, array in self._model.items() if name in names}


def _full_content(
    content: RecordDict, sent: Round, arrays: ArrayRecord, keys: Sequence[str], question: bool
) -> RecordDict:
    """Return a message's content with all parameters, which a question needs only where it holds some of them.

    keys: what the strategy calls model and config.
    """
    key, config_key = keys
    own = content.array_records.get(key, ArrayRecord())  # the strategy's: it may send others than those it was given
    if name := next(iter(own.keys() - arrays.keys()), None):
        raise FedMoEError(
            f"the strategy sends '{name}', which is no parameter of the model; put it into a record of another name"
        )
    for name, array in sent.arrays.items():
        if name in own and values_of(own[name]).size != values_of(array).size:
            raise FedMoEError(
                f"the strategy sends '{name}' with shape {list(own[name].shape)}, the model's is {list(array.shape)}"
            )
    config = content.config_records.get(config_key, ConfigRecord()).copy()
    config["server-round"] = sent.number
    config["shared"] = list(sent.shared)
    others = {name: record for name, record in content.items() if name not in (key, config_key)}
    if question and not own:
        return RecordDict({**others, "config": config})
    # What the strategy was given goes out as it is in the model: it need not be put together for each content.
    theirs = {name: array for name, array in own.items() if name in sent.arrays and array is not sent.arrays[name]}
    model = record_of({name: fitted(theirs.get(name, array), array) for name, array in arrays.items()})
    return RecordDict({**others, "arrays": model, "config": config})


def _described(returned: object) -> str:
    """Say of what types something is."""
    if isinstance(returned, tuple):
        return f"({', '.join(type(each).__name__ for each in returned)})"
    return f"a {type(returned).__name__}"


def _judged(returned: str, arrays: ArrayRecord, expected: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays that a strategy returned, with the dtype and shape of the model's; FedMoEError: unusable."""
    if arrays.keys() != expected.keys():
        odd = sorted(arrays.keys() ^ expected.keys())[0]
        raise FedMoEError(f"{returned} {'no' if odd in expected else 'the unknown'} parameter '{odd}'")
    judged: dict[str, Array] = {}
    for name, like in expected.items():
        array = arrays[name]
        if isinstance(array, TableRows) and array.server is like:
            judged[name], values = array, array.rows
        else:
            values = values_of(array)
            if values.size != int(np.prod(like.shape)) or (like.shape and values.shape != tuple(like.shape)):
                raise FedMoEError(f"{returned} '{name}' with shape {list(values.shape)}, expected {list(like.shape)}")
            values = values.astype(like.dtype, copy=False).reshape(like.shape)
            judged[name] = Valued(values)
        if not np.isfinite(values).all():
            raise FedMoEError(f"{returned} a value that is not finite in '{name}'; lower its learning rate")
    return judged
