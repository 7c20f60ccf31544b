"""The Flower client: one user, its history, its private parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray

from data.sampling import Split, generator, training_part
from fedmoe_client.learning.evaluation import Histories, mean_metrics, metrics_of, model_scorer, ranks
from fedmoe_client.learning.sub_catalogue import (
    ROWS,
    TABLE,
    in_table,
    renumbered,
    substituted,
    substitutes,
    touched_items,
    travels_as_rows,
)
from fedmoe_client.learning.training import LocalSteps, Outcome, Proximal, draw_steps, train_steps
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.history import OwnHistories
from fedmoe_client.store.private import Private


class FedMoEClient(NumPyClient):
    """Trains and evaluates on one user's history, or on those of a silo's users, who then share the private part.

    Arrays come and go in the order of ``workbench.names``.
    """

    def __init__(
        self,
        workbench: Workbench,
        client: int,
        private: Private,
        own: OwnHistories | None = None,
    ) -> None:
        """Put a client together.

        client: its number; without ``own`` histories also the user of the data set, ``0..num_users-1``.
        private: where its own parameters are kept between rounds.
        own: the histories it has of its own; None: the data set's.
        """
        self.workbench = workbench
        self.client = client
        self.private = private
        self.histories: Histories = workbench.dataset.interactions if own is None else own
        self.users = [client] if own is None else own.users

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train on the own history; return the shared arrays, the client's weight and the training's metrics.

        Where that is smaller, the item table is returned as its touched rows ``[R, D]``, and their ids, int64 ``[R]``,
        are one more array at the end (see ``reply_names``).

        config: ``shared``: the groups that are aggregated; ``server-round``; ``proximal-mu`` where the strategy
        wants FedProx's term. Raises FloatingPointError if a loss or a private parameter is not finite.
        """
        bench = self.workbench
        shared = bench.names_in(cast(list[str], config["shared"]))
        server, own = self._start(parameters, shared)
        trained, touched, outcome = self._train(server | own, shared, config)
        table = (server | own)[TABLE]
        sent = to_send(bench, trained, touched, table, shared)
        if TABLE not in shared:
            trained[TABLE] = in_table(table, touched, trained[TABLE])
        self._keep({name: array for name, array in trained.items() if name not in set(shared)})
        return list(sent.values()), outcome.weight, _scalars(outcome)

    def _keep(self, own: dict[str, NDArray[np.float32]]) -> None:
        if any(not np.isfinite(array).all() for array in own.values()):  # kept, they would spoil all rounds to come
            raise FloatingPointError("a private parameter is not finite after training: lower training.learning_rate")
        self.private.save(own)

    def reply_names(self, shared: Sequence[str], arrays: NDArrays) -> list[str]:
        """Return the names of the arrays that ``fit`` returned; shared: the groups that it was given."""
        names = self.workbench.names_in(shared)
        return names if len(arrays) == len(names) else [*names, ROWS]

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Rank the held-out item with the own private parameters, and (``global-``) with the server's of everything.

        config: ``shared`` as in ``fit``; ``split``: ``validation`` or ``test``. The loss is 1 - NDCG@10.
        """
        shared = self.workbench.names_in(cast(list[str], config["shared"]))
        split = cast(Split, config["split"])
        server, own = self._start(parameters, shared)
        self.workbench.load(server)
        common = self._metrics(split, server)
        personal = common
        if own:
            self.workbench.load(own)
            personal = self._metrics(split, server | own)
        metrics: dict[str, Scalar] = {**personal, **{f"global-{name}": value for name, value in common.items()}}
        return 1.0 - personal["ndcg@10"], len(self.users), metrics

    def _train(
        self, start: dict[str, NDArray[np.float32]], shared: list[str], config: dict[str, Scalar]
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64], Outcome]:
        """Train on a part of the catalogue; return all arrays, the item table with its touched rows alone, and these.

        The users are trained on one after the other, in an order that is drawn anew each round.
        """
        bench, server_round = self.workbench, int(config["server-round"])
        users = [self.steps(user, server_round) for user in self._ordered_users(server_round)]
        num_items = bench.dataset.interactions.num_items
        touched = touched_items((batch for steps in users for batch in steps.batches), num_items)
        bench.load({name: array for name, array in start.items() if name != TABLE})
        outcomes = []
        with substituted(bench.model, substitutes(bench.model, start[TABLE], touched)):
            proximal = self._proximal(shared, float(config.get("proximal-mu", 0.0)))
            for steps in users:
                steps = replace(steps, batches=[renumbered(batch, touched) for batch in steps.batches])
                outcomes.append(train_steps(bench.model, steps, bench.settings.training, server_round, proximal))
            trained = bench.take(bench.names)
        return trained, touched.cpu().numpy(), outcomes[0] if len(outcomes) == 1 else _merged(outcomes)

    def _ordered_users(self, server_round: int) -> list[int]:
        if len(self.users) == 1:
            return self.users
        order = generator(self.workbench.settings.seed, "users of a silo", server_round, self.client)
        return [self.users[position] for position in order.permutation(len(self.users))]

    def steps(self, user: int, server_round: int) -> LocalSteps:
        """Draw a user's steps of a round."""
        bench = self.workbench
        items = training_part(self.histories.history(user))
        return draw_steps(items, bench.dataset.interactions.num_items, bench.settings, user, server_round, bench.device)

    def _start(
        self, parameters: NDArrays, shared: list[str]
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
        """Return the server's arrays by name, and the client's own value of those that are private."""
        server = dict(zip(self.workbench.names, parameters, strict=True))
        of_server = set(shared)
        return server, {name: array for name, array in self.private.load().items() if name not in of_server}

    def _proximal(self, shared: list[str], mu: float) -> Proximal | None:
        if mu == 0.0:
            return None
        used = self.workbench.used()
        tensors = [used[name] for name in shared]
        return Proximal(mu, tensors, [tensor.detach().clone() for tensor in tensors])

    def _metrics(self, split: Split, loaded: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        settings = self.workbench.settings
        full = settings.evaluation.protocol == "full"
        found = ranks(
            model_scorer(self.workbench.model, self.workbench.catalogue_side(loaded) if full else None),
            self.histories,
            self.users,
            split,
            settings.evaluation,
            settings.seed,
            max(settings.model.max_seq_len, settings.model.memory_size),
        )
        cutoffs = settings.evaluation.cutoffs
        means = metrics_of(float(found[0]), cutoffs) if len(found) == 1 else mean_metrics(found, cutoffs)
        return {"rank": float(found.mean()), **means}


def to_send(
    bench: Workbench,
    trained: Mapping[str, NDArray[np.float32]],
    touched: NDArray[np.int64],
    table: NDArray[np.float32],
    shared: Sequence[str],
) -> dict[str, NDArray[Any]]:
    """Return what goes to the server, by name: of the item table its touched rows and their ids where that is smaller.

    trained: all arrays, the item table's touched rows ``[R, D]`` alone; touched: their ids ``[R]``, 0 first; table:
    what it was before ``[V + 1, D]``; shared: names of the shared parameters, in the model's order.
    """
    sent: dict[str, NDArray[Any]] = {name: trained[name] for name in shared}
    if TABLE not in sent:
        return sent
    if bench.settings.federation.item_updates == "auto" and travels_as_rows(table, touched):
        return sent | {TABLE: trained[TABLE][1:], ROWS: touched[1:]}
    return sent | {TABLE: in_table(table, touched, trained[TABLE])}


def _merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Return several users' outcomes as one, their metrics weighted as they are."""
    weight = sum(outcome.weight for outcome in outcomes)
    return Outcome(
        weight,
        {
            name: sum(outcome.weight * outcome.metrics[name] for outcome in outcomes) / weight
            for name in outcomes[0].metrics
        },
    )


def _scalars(outcome: Outcome) -> dict[str, Scalar]:
    return {name: float(value) for name, value in outcome.metrics.items()}
