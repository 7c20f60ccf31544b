"""The Flower client: one user, its history, its private parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray

from data.sampling import generator
from data.splits import Split, training_part
from fedmoe_client.evaluation import Histories, mean_metrics, metrics_of, model_scorer, ranks
from fedmoe_client.history import OwnHistories
from fedmoe_client.state import Private
from fedmoe_client.training import Outcome, Proximal, train_locally
from fedmoe_client.workbench import Workbench


class FedMoEClient(NumPyClient):
    """Trains and evaluates on one user's history, or on those of a silo's users, who then share the private part.

    Arrays come and go in the order of ``workbench.names``.
    """

    def __init__(self, workbench: Workbench, client: int, private: Private, own: OwnHistories | None = None) -> None:
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
        """Train on the own history; return the shared arrays, the number of targets and the training's metrics.

        config: ``shared``: the groups that are aggregated; ``server-round``; ``proximal-mu`` where the strategy
        wants FedProx's term.
        """
        bench = self.workbench
        shared = bench.names_in(cast(list[str], config["shared"]))
        server, own = self._start(parameters, shared)
        bench.load(server | own)
        proximal = self._proximal(shared, float(config.get("proximal-mu", 0.0)))
        outcome = self._train(int(config["server-round"]), proximal)
        trained = bench.take(bench.names)
        self.private.save({name: array for name, array in trained.items() if name not in set(shared)})
        return [trained[name] for name in shared], outcome.examples, _scalars(outcome)

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Rank the held-out item with the own private parameters, and (``global-``) with the server's of everything.

        config: ``shared`` as in ``fit``; ``split``: ``validation`` or ``test``. The loss is 1 - NDCG@10.
        """
        shared = self.workbench.names_in(cast(list[str], config["shared"]))
        split = cast(Split, config["split"])
        server, own = self._start(parameters, shared)
        self.workbench.load(server)
        common = self._metrics(split)
        personal = common
        if own:
            self.workbench.load(own)
            personal = self._metrics(split)
        metrics: dict[str, Scalar] = {**personal, **{f"global-{name}": value for name, value in common.items()}}
        return 1.0 - personal["ndcg@10"], len(self.users), metrics

    def _train(self, server_round: int, proximal: Proximal | None) -> Outcome:
        """Train on the users one after the other, in an order that is drawn anew each round."""
        bench = self.workbench
        users = self.users
        if len(users) > 1:
            order = generator(bench.settings.seed, "users of a silo", server_round, self.client)
            users = [users[position] for position in order.permutation(len(users))]
        outcomes = []
        for user in users:
            items = training_part(self.histories.history(user))
            outcomes.append(train_locally(bench.model, items, bench.settings, user, server_round, proximal))
        return outcomes[0] if len(outcomes) == 1 else _merged(outcomes)

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
        tensors = [self.workbench.parameters[name] for name in shared]
        return Proximal(mu, tensors, [tensor.detach().clone() for tensor in tensors])

    def _metrics(self, split: Split) -> dict[str, float]:
        settings = self.workbench.settings
        found = ranks(
            model_scorer(self.workbench.model),
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


def _merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Return several users' outcomes as one, their metrics weighted by their examples."""
    examples = sum(outcome.examples for outcome in outcomes)
    return Outcome(
        examples,
        {
            name: sum(outcome.examples * outcome.metrics[name] for outcome in outcomes) / examples
            for name in outcomes[0].metrics
        },
    )


def _scalars(outcome: Outcome) -> dict[str, Scalar]:
    return {name: float(value) for name, value in outcome.metrics.items()}
