"""Local training: a few epochs over one user's windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.sampling import generator
from fedmoe_client.batches import window_batches
from fedmoe_client.objective import Losses, Objective, objective
from fedmoe_client.step_report import step_report
from model.residual_moe import ResidualMoE
from settings import Settings, TrainingSettings


@dataclass(frozen=True)
class Proximal:
    """FedProx (Li et al., MLSys 2020): ``mu / 2 * ||w - w_server||^2`` over the shared parameters."""

    mu: float
    parameters: list[nn.Parameter]
    server: list[Tensor]

    def term(self) -> Tensor:
        """Return the scalar that is added to the loss."""
        distances = [(own - server).square().sum() for own, server in zip(self.parameters, self.server, strict=True)]
        return 0.5 * self.mu * torch.stack(distances).sum()


@dataclass(frozen=True)
class Outcome:
    """What a client reports of its training: targets trained in an epoch, and means over its steps by name."""

    examples: int
    metrics: dict[str, float]


def train_locally(
    model: ResidualMoE,
    items: NDArray[np.int32],
    settings: Settings,
    client: int,
    server_round: int,
    proximal: Proximal | None = None,
) -> Outcome:
    """Train the model in place on one user's training items; all randomness is that of (seed, round, client).

    Raises FloatingPointError if the loss is not finite.
    """
    training = settings.training
    rng = generator(settings.seed, "training", server_round, client)
    torch.manual_seed(int(rng.integers(2**62)))  # dropout draws from torch's own generator
    optimizer = make_optimizer(model, training, warmed_up(training, server_round))
    device = next(model.parameters()).device
    model.train()
    examples, reports = 0, []
    for epoch in range(training.local_epochs):
        for batch in window_batches(items, model.architecture.num_items, settings.model, training, rng, device):
            losses = objective(model, batch, training)
            total = losses.total if proximal is None else losses.total + proximal.term()
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            gate_gradient = clip_gradients(model, training)
            optimizer.step()
            positions = int((batch.targets > 0).sum())
            examples += positions if epoch == 0 else 0
            reports.append((positions, report(model, losses, gate_gradient)))
    return Outcome(examples, _weighted_means(reports))


def warmed_up(training: TrainingSettings, server_round: int) -> float:
    """Return the learning rate of a round: it rises linearly over the warm-up rounds."""
    if server_round >= training.learning_rate_warmup_rounds:
        return training.learning_rate
    return training.learning_rate * server_round / training.learning_rate_warmup_rounds


def make_optimizer(model: ResidualMoE, training: TrainingSettings, learning_rate: float) -> torch.optim.Optimizer:
    """Return a new optimiser. Only weight matrices decay: a decayed item row would move without being trained."""
    embeddings = {id(parameter) for parameter in model.items.parameters()}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.dim() > 1 and id(parameter) not in embeddings else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=training.momentum)
    adam = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=learning_rate)


def clip_gradients(model: ResidualMoE, training: TrainingSettings) -> float:
    """Clip the gate's gradient, then the whole gradient's norm; return the gate's gradient as it was."""
    gate_gradient = 0.0
    if model.gate is not None and model.gate.value.grad is not None:
        gate_gradient = float(model.gate.value.grad)
        if training.clip_gate:
            model.gate.value.grad.clamp_(-training.clip_gate, training.clip_gate)
    if training.clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    return gate_gradient


def report(model: ResidualMoE, losses: Objective, gate_gradient: float) -> dict[str, float]:
    """Return a step's numbers, see ``step_report``. Raises FloatingPointError if the loss is not finite."""
    require_finite(float(losses.ranking.detach()))
    detached = Losses(losses.total.detach(), losses.ranking.detach(), losses.balance.detach())
    scores = losses.scores.map(Tensor.detach)
    numbers = {
        name: float(value) for name, value in step_report(scores, detached, list(model.experts), model.competes).items()
    }
    if model.gate is not None:
        numbers |= {"gate": float(model.gate.value.detach()), "gate-gradient": gate_gradient}
    return numbers


def require_finite(ranking: float) -> None:
    """Raise FloatingPointError, with what to try, if a step's loss is not finite."""
    if not np.isfinite(ranking):
        raise FloatingPointError(f"the loss is {ranking}: lower training.learning_rate or training.clip_norm")


def _weighted_means(reports: Iterable[tuple[int, dict[str, float]]]) -> dict[str, float]:
    reports = list(reports)
    total = sum(weight for weight, _ in reports)
    return {name: sum(weight * numbers[name] for weight, numbers in reports) / total for name in reports[0][1]}
