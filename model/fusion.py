"""How the experts' views join the backbone, and how the result scores a candidate.

``final_{t,c} = share_c * seq_t + auxiliary_{m(t),c}`` depends on the position t and the candidate c, yet it is never
built for every pair: its dot product with the item vector ``e_c`` splits into ``seq_t . e_c``, one matrix product, and
``auxiliary_{m,c} . e_c``, which all positions of a segment m share and which mixes the experts' own products with
``e_c``. Its norm, for the cosine, splits likewise.

* residual (default): share = 1, auxiliary = g * (w_vis * LN(vis) + w_sem * LN(sem))
* competitive (the old three-way mixture): share = w_seq, auxiliary = w_vis * vis + w_sem * sem
* score (score-level): no common representation; each expert scores the candidate by sqrt(D) * cos(view, e_c) and the
  scores are mixed: seq . e_c + g * (w_vis * s_vis + w_sem * s_sem)

Shapes: B windows, L positions, N candidates, M segments, E experts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from model.memory import Memory

Score = Literal["dot", "cosine"]


def mixed_view(views: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``sum_e w_e * view_e`` ``[B, M, N, D]`` of E views ``[B, M, N, D]`` and weights ``[B, M, N, E]``."""
    return torch.stack([weights[..., e, None] * view for e, view in enumerate(views)]).sum(dim=0)


def sequence_scores(states: Tensor, vectors: Tensor, score: Score) -> Tensor:
    """Return SASRec's own scores ``[B, L, N]`` of states ``[B, L, D]`` and item vectors ``[B, N, D]``."""
    return _scored(states @ vectors.transpose(1, 2), states.square().sum(dim=-1, keepdim=True), vectors, score)


def representation_scores(
    states: Tensor,
    vectors: Tensor,
    views: Sequence[Tensor],
    weights: Tensor,
    share: Tensor | None,
    memory: Memory,
    score: Score,
) -> Tensor:
    """Return the scores ``[B, L, N]`` of ``final = share * states + sum_e weights_e * views_e``.

    states ``[B, L, D]``, vectors ``[B, N, D]``, views: E of ``[B, M, N, D]``, weights ``[B, M, N, E]`` (times the
    gate, where there is one), share ``[B, M, N]`` or None for 1.
    """
    products = states @ vectors.transpose(1, 2)
    shares = 1.0 if share is None else memory.by_position(share)
    agreement = torch.stack([(view * vectors.unsqueeze(1)).sum(dim=-1) for view in views], dim=-1)  # [B, M, N, E]
    dot = shares * products + memory.by_position((weights * agreement).sum(dim=-1))
    if score == "dot":
        return dot
    auxiliary = mixed_view(views, weights)
    every = auxiliary.transpose(1, 2) @ states.unsqueeze(1).transpose(2, 3)  # [B, N, M, L]
    crossed = torch.take_along_dim(every, memory.segment[:, None, None], dim=2).squeeze(2).transpose(1, 2)
    states_squared = states.square().sum(dim=-1, keepdim=True)
    own_squared = memory.by_position(auxiliary.square().sum(dim=-1))
    squared = shares * shares * states_squared + 2 * shares * crossed + own_squared
    return _scored(dot, squared, vectors, score)


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
