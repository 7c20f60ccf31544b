"""Losses over the scores of a window, one positive a position and the window's negatives; and the router's.

Shapes: positive ``[B, L]``, negative ``[B, L, n]`` (-inf where a negative must not count), valid bool ``[B, L]``.
A ranking loss is the mean over the valid positions, a scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def softmax_loss(positive: Tensor, negative: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of the positive against the negatives: sampled, or the whole catalogue.

    Klenitskiy & Vasilev, "Turning dross into gold loss: is BERT4Rec really better than SASRec?", RecSys 2023.
    """
    others = negative.logsumexp(dim=-1)
    return _mean(functional.softplus(others - positive), valid)


def bpr_loss(positive: Tensor, negative: Tensor, valid: Tensor) -> Tensor:
    """Bayesian personalised ranking, the mean over the negatives (Rendle et al., UAI 2009)."""
    counted = negative.isfinite()
    margin = functional.softplus(torch.where(counted, negative, positive.unsqueeze(-1)) - positive.unsqueeze(-1))
    return _mean((margin * counted).sum(dim=-1) / counted.sum(dim=-1).clamp_min(1), valid)


def gbce_loss(positive: Tensor, negative: Tensor, valid: Tensor, num_items: int, calibration: float) -> Tensor:
    """Generalised binary cross-entropy of gSASRec (Petrov & Macdonald, RecSys 2023), calibration t in [0, 1].

    With sampling rate a = n / (V - 1), the positive's probability is raised to beta = a * (t * (1 - 1/a) + 1/a).
    """
    rate = negative.shape[-1] / max(num_items - 1, 1)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    counted = negative.isfinite()
    against = functional.softplus(torch.where(counted, negative, torch.zeros_like(negative))) * counted
    return _mean(beta * functional.softplus(-positive) + against.sum(dim=-1), valid)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid).sum() / valid.sum().clamp_min(1)


def load_balance_loss(weights: Tensor, available: Tensor) -> Tensor:
    """Return ``sum_e (mean weight of e - 1/E)^2`` over the candidates that every expert has a view of.

    weights ``[..., E]``, available bool ``[..., E]``. Zero where the router had no choice to make.
    """
    experts = weights.shape[-1]
    chosen = available.all(dim=-1, keepdim=True)
    mean = (weights * chosen).flatten(0, -2).sum(dim=0) / chosen.sum().clamp_min(1)
    off = (mean - 1.0 / experts).square().sum()
    return torch.where(chosen.any(), off, torch.zeros_like(off))
