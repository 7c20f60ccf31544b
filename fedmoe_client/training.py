"""Local training: a few epochs over one user's windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.sampling import generator
from fedmoe_client.batches import WindowBatch, window_batches
from fedmoe_client.objective import Objective, objective
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


@dataclass(frozen=True)
class LocalSteps:
    """All local steps of one user in one round, drawn before the first of them.

    Attributes:
        batches: one a step, in their order; at least one.
        examples: targets of the first epoch.
        dropout_seed: for torch's own generator, which dropout draws from.
    """

    batches: list[WindowBatch]
    examples: int
    dropout_seed: int


def draw_steps(
    items: NDArray[np.int32],
    num_items: int,
    settings: Settings,
    client: int,
    server_round: int,
    device: torch.device,
) -> LocalSteps:
    """Draw a user's batches; all randomness is that of (seed, round, client).

    items: its training part, oldest first, at least two of ``1..num_items``.
    """
    rng = generator(settings.seed, "training", server_round, client)
    dropout_seed = int(rng.integers(2**62))
    epochs = [
        list(window_batches(items, num_items, settings.model, settings.training, rng, device))
        for _ in range(settings.training.local_epochs)
    ]
    examples = sum(int((batch.targets > 0).sum()) for batch in epochs[0])
    return LocalSteps([batch for epoch in epochs for batch in epoch], examples, dropout_seed)


def train_locally(
    model: ResidualMoE,
    items: NDArray[np.int32],
    settings: Settings,
    client: int,
    server_round: int,
    proximal: Proximal | None = None,
) -> Outcome:
    """Draw a user's steps and train the whole model in place: what all other ways of training must agree with.

    Raises FloatingPointError if the loss is not finite.
    """
    device = next(model.parameters()).device
    steps = draw_steps(items, model.architecture.num_items, settings, client, server_round, device)
    return train_steps(model, steps, settings.training, server_round, proximal)


def train_steps(
    model: ResidualMoE,
    steps: LocalSteps,
    training: TrainingSettings,
    server_round: int,
    proximal: Proximal | None = None,
) -> Outcome:
    """Train the model in place, with a new optimiser. Raises FloatingPointError if the loss is not finite."""
    torch.manual_seed(steps.dropout_seed)
    optimizer = make_optimizer(model, training, warmed_up(training, server_round))
    model.train()
    reports = []
    for batch in steps.batches:
        losses = objective(model, batch, training)
        total = losses.total if proximal is None else losses.total + proximal.term()
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        gate_gradient = clip_gradients(model, training)
        optimizer.step()
        reports.append((int((batch.targets > 0).sum()), report(model, losses, gate_gradient)))
    return Outcome(steps.examples, _weighted_means(reports))


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
    """Return a step's numbers; their names depend on the model alone, so that all clients report the same."""
    ranking = float(losses.ranking.detach())
    if not np.isfinite(ranking):
        raise FloatingPointError(f"the loss is {ranking}: lower training.learning_rate or training.clip_norm")
    numbers = {"loss": ranking}
    if losses.views is None:
        return numbers
    numbers["balance-loss"] = float(losses.balance.detach())
    if model.gate is not None:
        numbers |= {"gate": float(model.gate.value.detach()), "gate-gradient": gate_gradient}
    names = ["sequence"] * model.competes + list(model.experts)
    weights, available = losses.views.weights.detach(), losses.views.available
    spoken = available[..., int(model.competes) :].any(dim=-1)
    # A user whose items lack every modality chose nothing, which counts as an even choice.
    chosen = weights[spoken] if spoken.any() else weights.new_full((1, len(names)), 1 / len(names))
    for name, mean in zip(names, chosen.mean(dim=0).tolist(), strict=True):
        numbers[f"router-{name}"] = mean
    for name, size in zip(model.experts, losses.views.sizes.tolist(), strict=True):
        numbers[f"view-{name}"] = size
    if len(names) > 1:  # 1: an even choice, 0: always the same expert
        numbers["router-entropy"] = float(torch.special.entr(chosen).sum(dim=-1).mean()) / log(len(names))
    return numbers


def _weighted_means(reports: Iterable[tuple[int, dict[str, float]]]) -> dict[str, float]:
    reports = list(reports)
    total = sum(weight for weight, _ in reports)
    return {name: sum(weight * numbers[name] for weight, numbers in reports) / total for name in reports[0][1]}
