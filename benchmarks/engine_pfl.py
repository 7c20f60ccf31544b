"""The process that runs a plan in pfl-research (Apple's ``pfl``), through its own API and with the same torch model.

Run by an interpreter that has torch, pydantic, pyyaml and pfl, once per core under ``torch.distributed.run``: pfl then
spreads each cohort over the processes by the clients' numbers of windows, and sums their updates with gloo. The clients
train on the very windows and negatives of the federation, with the same step; only the gate's own clipping is left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
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

from benchmarks.engine_report import Report, Round, phase_of_rounds, plan_and_place
from benchmarks.engine_windows import client_batches, joined
from data.registry import Dataset, load_dataset
from fedmoe.settings import Settings
from fedmoe_client.learning.batches import WindowBatch
from fedmoe_client.learning.objective import objective
from model.build import build_model

Client = tuple[int, int]  # round and client


class Trained(nn.Module):
    """Our model with the two methods that pfl asks for."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.model = model
        self.training_settings = settings.training

    def loss(self, context: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """Return the loss of a batch of windows."""
        self.train()
        return objective(self.model, WindowBatch(context, targets, negatives), self.training_settings).total  # type: ignore[arg-type]

    def metrics(self, *batch: Tensor) -> dict[str, Any]:
        """Return nothing: nothing is evaluated."""
        return {}


class Unevaluated(PyTorchModel):  # type: ignore[misc]
    """A model that skips the evaluation which pfl makes of each client before and after its first training."""

    def evaluate(self, *args: Any, **kwargs: Any) -> Metrics:
        """Return nothing."""
        return Metrics()


class Stream:
    """The clients of all rounds, one a call, over and over; pfl reads ahead in a process of its own."""

    def __init__(self, cohorts: Sequence[Sequence[int]]) -> None:
        self.clients: list[Client] = [(n, client) for n, cohort in enumerate(cohorts, start=1) for client in cohort]
        self.next = 0

    def __call__(self) -> Client:
        """Return the next client."""
        client = self.clients[self.next % len(self.clients)]
        self.next += 1
        return client


class Stopwatch(TrainingProcessCallback):  # type: ignore[misc]
    """Notes the end of each round and sets the size of the next cohort."""

    def __init__(self, report: Report, phases: list[list[int]]) -> None:
        self.report = report
        self.planned = list(phase_of_rounds(phases))

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Take down the round that has ended."""
        phase, clients = self.planned[central_iteration]
        begun = self.report.rounds[-1].ended if self.report.rounds else self.report.ready
        self.report.rounds.append(Round(phase, clients, begun, time.time()))
        return central_iteration + 1 == len(self.planned), Metrics()


def main(words: Sequence[str]) -> None:
    """Run a plan's rounds; the first process writes the report."""
    settings, phases, cohorts, place = plan_and_place(words)
    if len(phases) != 1:
        raise ValueError("pfl runs cohorts of one size")
    torch.set_num_threads(1)
    report = Report()
    dataset = load_dataset(settings.data, settings.seed)
    report.notes["processes"] = pytorch_ops.distributed.world_size
    run(settings, dataset, cohorts, Stopwatch(report, phases))
    if pytorch_ops.distributed.global_rank == 0:
        report.write(Path(place))


def run(settings: Settings, dataset: Dataset, cohorts: list[list[int]], stopwatch: Stopwatch) -> None:
    """Run federated averaging with Adam on the server, as FedAdam does, over all cohorts."""
    training = settings.training

    def dataset_of(client: Client) -> UserDataset:
        windows = joined(list(client_batches(dataset, settings, *client)))
        return UserDataset([windows.context, windows.targets, windows.negatives], user_id=client)

    torch.manual_seed(settings.seed)
    trained = Trained(build_model(settings.model, dataset, settings.seed), settings)
    parameters = settings.federation.strategy_parameters
    server = torch.optim.Adam(
        trained.parameters(),
        lr=float(parameters.get("eta", 0.005)),
        betas=(0.9, 0.99),
        eps=float(parameters.get("tau", 1e-6)),
    )
    stream = Stream(cohorts)
    most = settings.training.max_windows or sys.maxsize
    windows = {
        client: min(most, -(-_targets(dataset, client[1]) // settings.model.max_seq_len)) for client in stream.clients
    }
    clients = FederatedDataset(dataset_of, stream, user_id_to_weight=windows)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=len(cohorts) + 1,
            evaluation_frequency=len(cohorts) + 1,
            train_cohort_size=len(cohorts[0]),
            val_cohort_size=None,
        ),
        SimulatedBackend(clients, clients, postprocessors=[WeightByDatapoints()]),
        Unevaluated(trained, torch.optim.SGD, server),
        NNTrainHyperParams(
            local_batch_size=training.batch_size,
            local_num_epochs=training.local_epochs,
            local_learning_rate=training.learning_rate,
            local_max_grad_norm=training.clip_norm or None,
        ),
        callbacks=[stopwatch],
        send_metrics_to_platform=False,
    )


def _targets(dataset: Dataset, user: int) -> int:
    offsets = dataset.interactions.offsets
    return max(1, int(offsets[user + 1] - offsets[user]) - 3)


if __name__ == "__main__":
    main(sys.argv[1:])
