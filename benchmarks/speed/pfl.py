"""The process that runs a plan in pfl-research (Apple's ``pfl``), through its own API and with the same torch model.

Run by an interpreter that has torch, pydantic, pyyaml and pfl, once per core under ``torch.distributed.run``: pfl then
spreads each cohort over the processes by the clients' numbers of windows, and sums their updates with gloo. The clients
train on the very windows and negatives of the federation, with the same step; only the gate's own clipping is left out.
"""

from __future__ import annotations

import sys
import time
from itertools import cycle
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset as UserDataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.speed.work import Report, client_windows, given_plan
from data.registry import load_dataset
from fedmoe.settings import TrainingSettings
from model.build import build_model
from model.losses import WindowBatch, objective

Client = tuple[int, int]  # round and client


class Trained(nn.Module):
    """Our model with the two methods that pfl asks for."""

    def __init__(self, model: nn.Module, training: TrainingSettings) -> None:
        super().__init__()
        self.model, self.settings = model, training

    def loss(self, context: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """Return the loss of a batch of windows."""
        self.train()
        return objective(self.model, WindowBatch(context, targets, negatives), self.settings)[0].total  # type: ignore[arg-type]

    def metrics(self, *batch: Tensor) -> dict[str, Any]:
        """Return nothing: nothing is evaluated."""
        return {}


class Unevaluated(PyTorchModel):  # type: ignore[misc]
    """A model that skips the evaluation which pfl makes of each client before and after its first training."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Metrics:
        """Return nothing."""
        return Metrics()


class Stopwatch(TrainingProcessCallback):  # type: ignore[misc]
    """Takes down when each round ends, and ends the run after the last."""

    def __init__(self, report: Report, rounds: int) -> None:
        self.report, self.rounds, self.begun = report, rounds, report.ready

    def after_central_iteration(self, *args: Any, central_iteration: int, **kwargs: Any) -> tuple[bool, Metrics]:
        """Take down the round that has ended; return whether it was the last."""
        ended = time.time()
        self.report.add(self.begun, ended)
        self.begun = ended
        return central_iteration + 1 == self.rounds, Metrics()


def main() -> None:
    """Run a plan's rounds with federated averaging and Adam on the server; the first process writes the report."""
    settings, rounds, cohorts = given_plan()
    torch.set_num_threads(1)
    report, training = Report(), settings.training
    dataset = load_dataset(settings)

    def dataset_of(client: Client) -> UserDataset:
        windows = client_windows(dataset, settings, *client)
        return UserDataset([windows.context, windows.targets, windows.negatives], user_id=client)

    def windows_of(client: Client) -> int:
        targets = max(1, len(dataset.interactions.history(client[1])) - 3)
        return min(training.max_windows or sys.maxsize, -(-targets // settings.model.max_seq_len))

    torch.manual_seed(settings.seed)
    trained = Trained(build_model(settings, dataset), training)
    given = {"eta": 0.005, "tau": 1e-6, **settings.federation.strategy_parameters}
    server = torch.optim.Adam(trained.parameters(), float(given["eta"]), betas=(0.9, 0.99), eps=float(given["tau"]))
    clients: list[Client] = [(n, client) for n, cohort in enumerate(cohorts, start=1) for client in cohort]
    stream = cycle(clients)  # pfl reads ahead, beyond the last round
    weights = {client: windows_of(client) for client in clients}
    users = FederatedDataset(dataset_of, lambda: next(stream), user_id_to_weight=weights)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds + 1,
            evaluation_frequency=rounds + 1,
            train_cohort_size=len(cohorts[0]),
            val_cohort_size=None,
        ),
        SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()]),
        Unevaluated(trained, torch.optim.SGD, server),
        NNTrainHyperParams(
            local_batch_size=training.batch_size,
            local_num_epochs=training.local_epochs,
            local_learning_rate=training.learning_rate,
            local_max_grad_norm=training.clip_norm or None,
        ),
        callbacks=[Stopwatch(report, rounds)],
        send_metrics_to_platform=False,
    )
    if pytorch_ops.distributed.global_rank == 0:
        report.write()


if __name__ == "__main__":
    main()
