"""The Flower client: one user, its history, its private parameters.

A round trains on the part of the catalogue that it touches. All batches are drawn before the first step, so it is known
which items occur in them: those of the contexts, the targets and the negatives. Only their rows of the item table can
move, since an item row without a gradient stays where it is (item rows never decay, and each optimiser starts afresh).
So the items are renumbered, and the model is given these rows of the table and of the features alone: what a client
costs does not depend on the catalogue. A loss over the whole catalogue touches all of it.

Shapes: V items, R touched rows with that of the padding, D hidden size, F width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray
from torch import Tensor

from data.sampling import generator, training_part
from fedmoe import wire
from fedmoe_client.app import received
from fedmoe_client.learning.additions import Addition, Proximal
from fedmoe_client.learning.evaluation import Histories
from fedmoe_client.learning.own_client import (
    TABLE,
    LocalRound,
    Parameters,
    Table,
    hooked_training,
    in_table,
    records_to_send,
)
from fedmoe_client.learning.private_reply import ASKED, SUM_BITS, noise_stream, private_reply
from fedmoe_client.learning.training import (
    LocalSteps,
    Outcome,
    draw_steps,
    load,
    renumbered,
    touched_items,
    train_steps,
    weighted_means,
)
from fedmoe_client.learning.workbench import Workbench, made_workbench
from fedmoe_client.store.history import OwnHistories
from fedmoe_client.store.identity import catalogue_stamp
from fedmoe_client.store.private import NamedArrays, PrivateParameters
from model.sasrec import substituted, substitutes

ROWS = f"{TABLE}{wire.ROWS}"
KEPT = "client/"  # begins the names of what a client of one's own keeps beside its private parameters


class Answer(NamedTuple):
    """arrays: None after an evaluation; metrics: ``num-examples`` first; records: beside them (see ``extra_of``)."""

    arrays: wire.NamedArrays | None
    metrics: dict[str, Any]
    records: RecordDict


class FedMoEClient(NumPyClient):
    """Trains and evaluates on one user's history (``Silo`` on many); arrays are in the order of ``workbench.names``."""

    def __init__(
        self,
        workbench: Workbench,
        client: int,
        private: PrivateParameters,
        own: OwnHistories | None = None,
        simulated: bool = False,
    ) -> None:
        """Put a client together.

        client: its number; without ``own`` histories also the user of the data set, ``0..num_users-1``.
        private: where its own parameters are kept between rounds.
        own: the histories it has of its own; None: the data set's.
        simulated: whether noise may be drawn from the run's seed, which the server knows.

        Attributes:
            extra, kept, reply: of a client of one's own, see ``LocalRound``; ``kept`` is there after ``load_own``.
            ranked: the server's parameters and the client's own, with which the latest evaluation ranked.
        """
        self.workbench = workbench
        self.client = client
        self.private = private
        self.simulated = simulated
        self.extra, self.reply = RecordDict(), RecordDict()
        self.kept: dict[str, NDArray[Any]] = {}
        self.histories: Histories = workbench.dataset.interactions if own is None else own
        self.users = [client] if own is None else own.users

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train on the own history; return the shared arrays, the client's weight and the training's metrics.

        Where that is smaller, the item table is returned as its touched rows ``[R, D]``, and their ids, int64 ``[R]``,
        are one more array at the end (see ``reply_names``).

        config: ``shared``: the groups that are aggregated; ``server-round``; ``proximal-mu`` where the strategy
        wants FedProx's term; what differential privacy asks for (see ``private_reply``).
        Raises FloatingPointError if a loss or a private parameter is not finite.
        """
        server, own, shared = self._start(parameters, config)
        users = [self.steps(user, int(config["server-round"])) for user in self._ordered_users(config)]
        touched = self._touched(users)
        ids, table = touched.cpu().numpy(), (server | own)[TABLE]
        beside = partial(_proximal, shared, config)
        train = partial(self._train, touched, users, config)
        if (hooks := self.workbench.own_client) is None:
            trained, outcome = train(server | own, beside)
            sent = to_send(self.workbench, trained, ids, table, shared)
        else:
            given = self.workbench.settings, self.client, config, self.extra
            this = LocalRound(*given, server | own, shared, ids, users, self.kept, train)
            trained, outcome = hooked_training(hooks, this, beside)
            sent = hooks.sent(this, to_send(self.workbench, trained, ids, table, shared))
            self.reply = records_to_send(this)
        sent, metrics = self.as_asked(server, sent, {"num-examples": outcome.weight, **outcome.metrics}, config)
        if TABLE not in shared:
            trained[TABLE] = in_table(table, ids, trained[TABLE])
        private = {name: array for name, array in trained.items() if name not in set(shared)}
        self.keep(private)
        return list(sent.values()), int(metrics.pop("num-examples")), metrics

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Rank the held-out item with the own private parameters, and (``global-``) with the server's of everything.

        config: ``shared`` as in ``fit``; ``split``: ``validation``, ``test`` or ``new``. The loss is 1 - NDCG@10.
        """
        bench, split = self.workbench, str(config["split"])
        server, own, _ = self._start(parameters, config)
        if bench.own_client is not None:
            own |= bench.own_client.ranks_with(self.kept)
        self.ranked = server, own
        bench.load(server)
        common = bench.measured(server, self.histories, self.users, split)
        personal = common
        if own:
            bench.load(own)
            personal = bench.measured(server | own, self.histories, self.users, split)
        metrics: dict[str, Scalar] = {**personal, **{f"global-{name}": value for name, value in common.items()}}
        return 1.0 - personal["ndcg@10"], len(self.users), metrics

    def _turn_of(self, place: int, used: Parameters) -> AbstractContextManager[None]:
        return nullcontext()  # of a silo: what goes around a user's training

    def reply_names(self, shared: Sequence[str], arrays: NDArrays) -> list[str]:
        """Return the names of the arrays that ``fit`` returned; shared: the groups that it was given."""
        names = self.workbench.names_in(tuple(shared))
        return names if len(arrays) == len(names) else [*names, ROWS]

    def steps(self, user: int, server_round: int) -> LocalSteps:
        """Draw a user's steps of a round."""
        bench, items = self.workbench, training_part(self.histories.history(user))
        return draw_steps(items, bench.negatives, bench.settings, user, server_round, bench.device)

    def as_asked(
        self, server: NamedArrays, sent: wire.NamedArrays, metrics: dict[str, Any], config: Mapping[str, Any]
    ) -> tuple[wire.NamedArrays, dict[str, Any]]:
        """Return what leaves as the server asks for it: perhaps clipped, noisy, without metrics."""
        if ASKED.isdisjoint(config):
            return sent, metrics
        seed, number = self.workbench.settings.seed, int(config["server-round"])
        return private_reply(
            server, sent, metrics, config, partial(noise_stream, self.simulated, seed, number, self.client)
        )

    def answer(
        self, server: NamedArrays, sent: NamedArrays | None, metrics: dict[str, Any], config: Mapping[str, Any]
    ) -> Answer:
        """Return what leaves: arrays and metrics as they are, or integers where the server adds them up exactly."""
        if SUM_BITS not in config:
            return Answer(sent, metrics, self.reply)
        from fedmoe_client.learning.summed_reply import summed_reply

        return Answer(*summed_reply(self, server, sent, metrics, config))

    def load_own(self, shared: Collection[str]) -> NamedArrays:
        """Return the client's own value of each parameter that is not ``shared``, where it has one."""
        found = self.private.load()
        self.kept = {name.removeprefix(KEPT): array for name, array in found.items() if name.startswith(KEPT)}
        return {name: array for name, array in found.items() if name in self.workbench.shapes and name not in shared}

    def keep(self, own: NamedArrays) -> None:
        """Keep the private parameters of a round, and what a client of one's own wants kept."""
        self.private.save(own | {KEPT + name: np.asarray(array) for name, array in self.kept.items()})

    def _start(self, parameters: NDArrays, config: Mapping[str, Any]) -> tuple[NamedArrays, NamedArrays, list[str]]:
        """Return the server's arrays, the client's own value of those that are private, and the shared ones' names."""
        shared = self.workbench.names_in(tuple(config["shared"]))
        server = dict(zip(self.workbench.names, parameters, strict=True))
        return server, self.load_own(set(shared)), shared

    def _ordered_users(self, config: Mapping[str, Any]) -> list[int]:
        """Return the users in the order in which they are trained on, which is drawn anew each round."""
        rng = generator(self.workbench.settings.seed, "users of a silo", int(config["server-round"]), self.client)
        return [self.users[position] for position in rng.permutation(len(self.users))]

    def _touched(self, users: Sequence[LocalSteps]) -> Tensor:
        """Return the ids of the items whose rows are trained, ``[R]``, 0 first."""
        bench, own = self.workbench, self.workbench.own_client
        if own is not None and own.whole_table:
            return torch.arange(bench.model.num_items + 1, device=bench.device)
        return touched_items((batch for steps in users for batch in steps.batches), bench.model.num_items)

    def _train(
        self,
        touched: Tensor,
        users: Sequence[LocalSteps],
        config: Mapping[str, Any],
        start: NamedArrays,
        additions: Callable[[Parameters], Sequence[Addition]],
    ) -> tuple[NamedArrays, Outcome]:
        """Train on one user after the other; return all arrays, of the item table the touched rows alone."""
        bench, training = self.workbench, self.workbench.settings.training
        load(bench.parameters, {name: array for name, array in start.items() if name != TABLE})
        outcomes = []
        with substituted(bench.model, substitutes(bench.model.features, start[TABLE], touched)):
            used = bench.parameters | {TABLE: bench.model.get_parameter(TABLE)}
            beside = additions(used)
            for place, steps in enumerate(users):
                local = replace(steps, batches=[renumbered(batch, touched) for batch in steps.batches])
                with self._turn_of(place, used):
                    outcomes.append(train_steps(bench.model, local, training, int(config["server-round"]), beside))
            trained = {name: parameter.detach().cpu().numpy().copy() for name, parameter in used.items()}
        if len(outcomes) == 1:
            return trained, outcomes[0]
        means = weighted_means([(outcome.weight, outcome.metrics) for outcome in outcomes])
        return trained, Outcome(sum(outcome.weight for outcome in outcomes), means)


def workbench(run_config: Mapping[str, bool | int | float | str], catalogue: Path | None = None) -> Workbench:
    """Return this process's workbench for a run's settings, made once; catalogue: folder in place of the data set's."""
    # With their types: True, 1 and 1.0 are equal.
    items = tuple((key, type(value).__name__, value) for key, value in sorted(run_config.items()))
    return made_workbench(items, catalogue, None if catalogue is None else catalogue_stamp(catalogue))


def carry_out(
    client: FedMoEClient, kind: str, packed: wire.Packed, config: Mapping[str, Any], extra: RecordDict | None = None
) -> Answer:
    """Carry out a message.

    kind: ``train`` or ``evaluate``; packed: all parameters; extra: the message's other records, for a client of one's
    own. Raises FedMoEError for arrays of another model.
    """
    arrays = received(client.workbench, packed)
    client.extra = extra or RecordDict()
    if kind == "train":
        trained, examples, metrics = client.fit(arrays, dict(config))
        sent = dict(zip(client.reply_names(config["shared"], trained), trained, strict=True))
        server = dict(zip(client.workbench.names, arrays, strict=True))
        return client.answer(server, sent, {"num-examples": examples, **metrics}, config)
    _, examples, metrics = client.evaluate(arrays, dict(config))
    if client.workbench.list_length:
        from fedmoe_client.learning.lists import shown_lists  # where a metric of one's own needs them

        client.reply = shown_lists(client, str(config["split"]))
    client.workbench.reading = None  # it takes up memory
    return client.answer({}, None, {"num-examples": examples, **metrics}, config)


def to_send(
    bench: Workbench, trained: NamedArrays, touched: NDArray[np.int64], table: Table, shared: Sequence[str]
) -> wire.NamedArrays:
    """Return what goes to the server, by name: of the item table its touched rows and their ids where that is smaller.

    trained: all arrays, the item table's touched rows ``[R, D]`` alone; touched: their ids ``[R]``, 0 first; table:
    what it was before ``[V + 1, D]``; shared: names of the shared parameters, in the model's order.
    """
    sent: wire.NamedArrays = {name: trained[name] for name in shared}
    if TABLE not in sent:
        return sent
    auto = bench.settings.federation.item_updates == "auto" and travels_as_rows(table, touched)
    if auto or bench.settings.privacy.sum_bits:  # sums count the clients that touched a row
        return sent | {TABLE: trained[TABLE][1:], ROWS: touched[1:]}
    return sent | {TABLE: in_table(table, touched, trained[TABLE])}


def travels_as_rows(table: Table, touched: NDArray[np.int64]) -> bool:
    """Return whether the touched rows and their ids (without the padding's) are smaller than the table."""
    return (table[:1].nbytes + touched.itemsize) * (len(touched) - 1) < table.nbytes


def _proximal(shared: Sequence[str], config: Mapping[str, Any], used: Parameters) -> list[Addition]:
    """Return FedProx's term over the shared parameters, where the strategy asks for it."""
    if not (mu := float(config.get("proximal-mu", 0.0))):
        return []
    parameters = [used[name] for name in shared]
    return [Proximal(mu, parameters, [parameter.detach().clone() for parameter in parameters])]
