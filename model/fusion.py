"""Fusion: how the backbone's state and the experts' views become scores. See ``model.residual_moe`` for the formulas.

Shapes: B windows, L positions, N candidates, M segments, E experts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from model.experts import Memory

Score = Literal["dot", "cosine"]


def mixed_view(views: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``sum_e w_e * view_e`` ``[B, M, N, D]`` of E views ``[B, M, N, D]`` and weights ``[B, M, N, E]``."""
    return reduce(torch.add, [weights[..., e, None] * view for e, view in enumerate(views)])


def sequence_scores(states: Tensor, vectors: Tensor, score: Score) -> Tensor:
    """Return SASRec's own scores ``[B, L, N]`` of states ``[B, L, D]`` and item vectors ``[B, N, D]``."""
    return _scored(states @ vectors.transpose(1, 2), states.square().sum(dim=-1, keepdim=True), vectors, score)


def cosine_scores(
    dot: Tensor,
    states: Tensor,
    vectors: Tensor,
    views: Sequence[Tensor],
    weights: Tensor,
    share: Tensor | None,
    memory: Memory,
) -> Tensor:
    """Return the scores ``[B, L, N]`` by cosine of ``final = share * states + sum_e weights_e * views_e``.

    dot ``[B, L, N]``: dot products of ``final`` and the vectors; states ``[B, L, D]``, vectors ``[B, N, D]``, views:
    E of ``[B, M, N, D]``, weights ``[B, M, N, E]`` (times the gate, where there is one), share ``[B, M, N]`` or None
    for 1.
    """
    shares = 1.0 if share is None else memory.by_position(share)
    auxiliary = mixed_view(views, weights)
    every = auxiliary.transpose(1, 2) @ states.unsqueeze(1).transpose(2, 3)  # [B, N, M, L]
    crossed = torch.take_along_dim(every, memory.segment[:, None, None], dim=2).squeeze(2).transpose(1, 2)
    states_squared = states.square().sum(dim=-1, keepdim=True)
    own_squared = memory.by_position(auxiliary.square().sum(dim=-1))
    squared = shares * shares * states_squared + 2 * shares * crossed + own_squared
    return _scored(dot, squared, vectors, "cosine")


def score_level_scores(
    states: Tensor, vectors: Tensor, views: Sequence[Tensor], weights: Tensor, memory: Memory, score: Score
) -> Tensor:
    """Return the scores ``[B, L, N]`` of score-level fusion.

    views: E of ``[B, M, N, D]``, weights ``[B, M, N, E]``: the router's times the gate.
    """
    dim, own = vectors.shape[-1], vectors.unsqueeze(1)
    cosines = torch.stack([functional.cosine_similarity(view, own, dim=-1) for view in views], dim=-1)
    auxiliary = (weights * cosines).sum(dim=-1) * dim**0.5
    scores: Tensor = sequence_scores(states, vectors, score) + memory.by_position(auxiliary)
    return scores


def _scored(dot: Tensor, squared_norm: Tensor, vectors: Tensor, score: Score) -> Tensor:
    """Turn dot products ``[B, L, N]`` into scores; squared_norm: of what was multiplied with ``vectors``."""
    if score == "dot":
        return dot
    norms = squared_norm.clamp_min(1e-12).sqrt() * vectors.norm(dim=-1).clamp_min(1e-6).unsqueeze(1)
    scaled: Tensor = vectors.shape[-1] ** 0.5 * dot / norms
    return scaled
