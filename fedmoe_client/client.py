"""The Flower client: one user, its history, its private parameters."""

from __future__ import annotations

from typing import cast

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray

from data.splits import Split, training_part
from fedmoe_client.evaluation import metrics_of, model_scorer, ranks
from fedmoe_client.state import PrivateParameters
from fedmoe_client.training import Outcome, Proximal, train_locally
from fedmoe_client.workbench import Workbench


class FedMoEClient(NumPyClient):
    """Trains and evaluates on one user's history. Arrays come and go in the order of ``workbench.names``."""

    def __init__(self, workbench: Workbench, client: int, private: PrivateParameters) -> None:
        """client: the user, ``0..num_users-1``; private: where its own parameters are kept between rounds."""
        self.workbench = workbench
        self.client = client
        self.private = private

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train on the own history; return the shared arrays, the number of targets and the training's metrics.

        config: ``shared``: the groups that are aggregated; ``server-round``; ``proximal-mu`` where the strategy
        wants FedProx's term.
        """
        bench = self.workbench
        shared = bench.names_in(cast(list[str], config["shared"]))
        server, own = self._start(parameters, shared)
        bench.load(server | own)
        items = training_part(bench.dataset.interactions.history(self.client))
        outcome = train_locally(
            bench.model,
            items,
            bench.settings,
            self.client,
            int(config["server-round"]),
            self._proximal(shared, float(config.get("proximal-mu", 0.0))),
        )
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
        return 1.0 - personal["ndcg@10"], 1, metrics

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
        settings, dataset = self.workbench.settings, self.workbench.dataset
        rank = ranks(
            model_scorer(self.workbench.model),
            dataset.interactions,
            [self.client],
            split,
            settings.evaluation,
            settings.seed,
            max(settings.model.max_seq_len, settings.model.memory_size),
        )
        return {"rank": float(rank[0]), **metrics_of(float(rank[0]), settings.evaluation.cutoffs)}


def _scalars(outcome: Outcome) -> dict[str, Scalar]:
    return {name: float(value) for name, value in outcome.metrics.items()}
