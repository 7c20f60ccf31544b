"""What a batch of windows asks of the model: the ranking loss, plus the router's load-balance loss.

``window_scores`` runs the model; ``losses_of`` and the report are plain arithmetic on what it returns, so that for a
stack of clients they can be mapped over the clients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fedmoe.settings import TrainingSettings
from fedmoe_client.learning.batches import WindowBatch
from model.losses import bpr_loss, gbce_loss, load_balance_loss, softmax_loss
from model.residual_moe import ResidualMoE, Scored, Views


class Model(Protocol):
    """Scores candidates at every position of a window: ``ResidualMoE``, or its stacked form."""

    def __call__(self, context: Tensor, length: int, candidates: Tensor) -> Scored:
        """See ``ResidualMoE.forward``."""


class WindowScores(NamedTuple):
    """Of B windows: positive ``[B, L]``, negative ``[B, L, n]``, valid bool ``[B, L]``, and of the experts, where
    there are any, weights and available ``[B, M, N, E]`` and power ``[B, E]`` (see ``model.residual_moe.Views``)."""

    positive: Tensor
    negative: Tensor
    valid: Tensor
    weights: Tensor | None = None
    available: Tensor | None = None
    power: Tensor | None = None

    def by_client(self, clients: int) -> WindowScores:
        """Return ``[B, ...]`` as ``[C, W, ...]``."""
        return self.map(lambda tensor: tensor.view(clients, -1, *tensor.shape[1:]))

    def map(self, change: Callable[[Tensor], Tensor]) -> WindowScores:
        """Apply a function to every tensor."""
        return WindowScores(*(change(tensor) for tensor in self.tensors()))

    def tensors(self) -> list[Tensor]:
        """Return those that there are; ``WindowScores(*tensors)`` puts them together again."""
        return [tensor for tensor in self if tensor is not None]


class Losses(NamedTuple):
    """Scalars of one client: total = ranking + balance_weight * balance."""

    total: Tensor
    ranking: Tensor
    balance: Tensor


@dataclass(frozen=True)
class Objective:
    """The losses of a batch, and the scores that they come from."""

    total: Tensor
    ranking: Tensor
    balance: Tensor
    scores: WindowScores


def objective(model: ResidualMoE, batch: WindowBatch, training: TrainingSettings) -> Objective:
    """Return the losses of one client's batch."""
    num_items = model.num_items
    scores = window_scores(model, batch, num_items, training.precision)
    return Objective(*losses_of(scores, num_items, training), scores)


def window_scores(
    model: Model, batch: WindowBatch, num_items: int, precision: Literal["float32", "bfloat16"]
) -> WindowScores:
    """Run the model on a batch. With bfloat16, its matrix products are taken in that type (torch's autocast)."""
    with torch.autocast(batch.context.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        scores = _scores_of(model, batch, num_items)
    return scores if precision == "float32" else scores.map(_widened)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _scores_of(model: Model, batch: WindowBatch, num_items: int) -> WindowScores:
    length = batch.targets.shape[1]
    if batch.negatives is None:
        catalogue = torch.arange(1, num_items + 1, device=batch.targets.device)
        scored = model(batch.context, length, catalogue.expand(len(batch.targets), -1))
        column = (batch.targets - 1).clamp_min(0).unsqueeze(-1)
        positive = scored.scores.gather(2, column).squeeze(-1)
        negative = scored.scores.scatter(2, column, -torch.inf)  # the target is no negative of itself
    else:
        scored = model(batch.context, length, torch.cat([batch.targets, batch.negatives], dim=1))
        positive = scored.scores[:, :, :length].diagonal(dim1=1, dim2=2)
        negative = scored.scores[:, :, length:]
    return WindowScores(positive, negative, batch.targets > 0, *_said(scored.views))


def _said(views: Views | None) -> tuple[Tensor, ...]:
    return () if views is None else (views.weights, views.available, views.power)


def losses_of(scores: WindowScores, num_items: int, training: TrainingSettings) -> Losses:
    """Return the losses of one client's windows."""
    ranking = ranking_loss(scores.positive, scores.negative, scores.valid, num_items, training)
    balance = torch.zeros_like(ranking)
    if scores.weights is not None and scores.available is not None and scores.weights.shape[-1] > 1:
        balance = load_balance_loss(scores.weights, scores.available)
    return Losses(ranking + training.balance_weight * balance, ranking, balance)


def ranking_loss(
    positive: Tensor, negative: Tensor, valid: Tensor, num_items: int, training: TrainingSettings
) -> Tensor:
    """Return the loss named by the settings; shapes as in ``model.losses``."""
    if training.loss == "bpr":
        return bpr_loss(positive, negative, valid)
    if training.loss == "gbce":
        return gbce_loss(positive, negative, valid, num_items, training.gbce_calibration)
    return softmax_loss(positive, negative, valid)
