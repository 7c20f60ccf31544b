"""What a batch of windows asks of the model: the ranking loss, plus the router's load-balance loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmoe_client.batches import WindowBatch
from model.losses import bpr_loss, gbce_loss, softmax_loss
from model.residual_moe import ResidualMoE, Views
from model.router import load_balance_loss
from settings import TrainingSettings


@dataclass(frozen=True)
class Objective:
    """ranking, balance: scalars; total = ranking + balance_weight * balance; views: what the experts said, or None."""

    total: Tensor
    ranking: Tensor
    balance: Tensor
    views: Views | None


def objective(model: ResidualMoE, batch: WindowBatch, training: TrainingSettings) -> Objective:
    """Return the losses of one batch."""
    length = batch.targets.shape[1]
    valid = batch.targets > 0
    if batch.negatives is None:
        catalogue = torch.arange(1, model.architecture.num_items + 1, device=batch.targets.device)
        scored = model(batch.context, length, catalogue.expand(len(batch.targets), -1))
        column = (batch.targets - 1).clamp_min(0).unsqueeze(-1)
        positive = scored.scores.gather(2, column).squeeze(-1)
        negative = scored.scores.scatter(2, column, -torch.inf)  # the target is no negative of itself
    else:
        scored = model(batch.context, length, torch.cat([batch.targets, batch.negatives], dim=1))
        positive = scored.scores[:, :, :length].diagonal(dim1=1, dim2=2)
        negative = scored.scores[:, :, length:]
    ranking = ranking_loss(positive, negative, valid, model.architecture.num_items, training)
    balance = ranking.new_zeros(())
    if scored.views is not None and scored.views.weights.shape[-1] > 1:
        balance = load_balance_loss(scored.views.weights, scored.views.available)
    return Objective(ranking + training.balance_weight * balance, ranking, balance, scored.views)


def ranking_loss(
    positive: Tensor, negative: Tensor, valid: Tensor, num_items: int, training: TrainingSettings
) -> Tensor:
    """Return the loss named by the settings; shapes as in ``model.losses``."""
    if training.loss == "bpr":
        return bpr_loss(positive, negative, valid)
    if training.loss == "gbce":
        return gbce_loss(positive, negative, valid, num_items, training.gbce_calibration)
    return softmax_loss(positive, negative, valid)
