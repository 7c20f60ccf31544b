"""The item-centric router: which expert a candidate should listen to, and the loss that keeps both in use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.dropout import SharedDropout


class ItemRouter(nn.Module):
    """An MLP on the candidate's item vector; its softmax weighs the experts."""

    def __init__(self, dim: int, experts: int, dropout: float) -> None:
        super().__init__()
        half = max(dim // 2, 1)
        self.layers = nn.Sequential(
            nn.Linear(dim, dim),
            nn.LayerNorm(dim),
            nn.ReLU(),
            SharedDropout(dropout),
            nn.Linear(dim, half),
            nn.ReLU(),
            SharedDropout(dropout),
            nn.Linear(half, experts),
        )

    def forward(self, vectors: Tensor, available: Tensor) -> Tensor:
        """Return the weights ``[B, M, N, E]`` for item vectors ``[B, N, D]``.

        available: bool ``[B, M, N, E]``; an expert without a view of the candidate gets 0 and the others sum to 1.
        Where no expert has one, all weights are 0.
        """
        if available.shape[-1] == 1:  # a softmax over one expert is 1, and has no gradient
            return available.to(vectors.dtype)
        logits = self.layers(vectors).unsqueeze(1).expand(available.shape)
        weights = logits.masked_fill(~available, -1e9).softmax(dim=-1)
        kept: Tensor = weights * available
        return kept


def load_balance_loss(weights: Tensor, available: Tensor) -> Tensor:
    """Return ``sum_e (mean weight of e - 1/E)^2`` over the candidates that every expert has a view of.

    weights ``[..., E]``, available bool ``[..., E]``. Zero where the router had no choice to make.
    """
    experts = weights.shape[-1]
    chosen = available.all(dim=-1, keepdim=True)
    mean = (weights * chosen).flatten(0, -2).sum(dim=0) / chosen.sum().clamp_min(1)
    off = (mean - 1.0 / experts).square().sum()
    return torch.where(chosen.any(), off, torch.zeros_like(off))
