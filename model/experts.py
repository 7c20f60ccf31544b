"""The two experts: attention of a candidate over the user's memory, in pictures and in text.

Two kinds of each. ``MatchingExpert`` (default) begins as a rule that holds without any training, recent items like the
candidate count, and refines it. ``VisualExpert`` and ``SemanticExpert``, the reference's, learn from nothing what to
attend to.

Keys and values are projected once per context item, queries once per candidate; nothing is computed once per
(candidate, memory) pair but the attention itself. The linear map that the reference applies after the visual
attention is applied to the values before it, which is the same since attention weights sum to 1.

Shapes: B windows, N candidates, C context items, M segments, A attention size, H heads, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import exp

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.dropout import SharedDropout
from model.items import FixedFeatures, principal_axes
from model.memory import Memory

# Subtracting the highest logit, as a softmax does, would let later items touch the last digits of earlier scores.
# Logits beyond 60 do not come up in training, and exp(60), about 1e26, can still be summed in float32.
_REACH = 60.0
SHARPNESS = 6.0  # of a matching expert before training: logit of an item whose features are the candidate's own


def attend(
    query: Tensor, key: Tensor, value: Tensor, usable: Tensor, memory: Memory, heads: int, decay: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Multi-head attention of every candidate over every segment's memory; where nothing is usable, zero.

    query ``[B, N, A]``, key ``[B, C, A]``, value ``[B, C, D]``, usable bool ``[B, C, N]`` -> what was attended to
    ``[B, M, N, D]``, and where there was anything, bool ``[B, M, N]``. decay: an item's weight falls to 1/e with so
    many later items; 0: never.

    The logits do not depend on the segment. So the exponentials are taken once, the numerator and (as one more
    column of ones) the denominator of the softmax are summed once a block, and a segment adds up its blocks. Items fade
    towards the end of their block, and blocks in the sum.
    """
    query, key, value = (_split_heads(tensor, heads) for tensor in (query, key, value))
    logits = key @ (query * query.shape[-1] ** -0.5).transpose(2, 3)  # [B, H, C, N]
    if decay:
        place = torch.arange(logits.shape[2], device=logits.device, dtype=logits.dtype) % memory.block
        logits = logits + ((place - (memory.block - 1)) / decay).unsqueeze(1)
    # In place and behind autograd's back: what exp turns into 0 has no gradient either, and the reach is not met.
    functional.hardtanh_(logits.detach(), -_REACH, _REACH).masked_fill_(~usable.unsqueeze(1), -torch.inf)
    summed = _sum_segments(logits.exp(), functional.pad(value, (0, 1), value=1.0), memory, _kept(memory.block, decay))
    numerator, total = torch.split(summed, [value.shape[-1], 1], dim=-1)
    attended = numerator * total.clamp_min(torch.finfo(value.dtype).tiny).reciprocal()  # [B, H, M, N, D / H]
    return attended.permute(0, 2, 3, 1, 4).flatten(3), total[:, 0, ..., 0] > 0


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    """``[B, X, A]`` -> ``[B, H, X, A / H]``."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _kept(block: int, decay: float) -> float:
    """Return what is left of an item's weight a block later."""
    return exp(-block / decay) if decay else 1.0


def _sum_segments(weights: Tensor, value: Tensor, memory: Memory, kept: float) -> Tensor:
    """Return ``sum_c weights_cn * value_c`` over each segment's memory: ``[B, H, M, N, D / H + 1]``.

    weights ``[B, H, C, N]``, value ``[B, H, C, D / H + 1]``; kept: what is left of a block's sum a block later.
    """
    batch, heads = weights.shape[:2]
    blocked = weights.view(batch, heads, -1, memory.block, weights.shape[-1])  # [B, H, blocks, R, N]
    blocks = blocked.transpose(3, 4) @ value.reshape(batch, heads, -1, memory.block, value.shape[-1])
    each = blocks.unbind(dim=2)
    return torch.stack([_faded_sum(each[m : m + memory.blocks], kept) for m in range(memory.segments)], dim=2)


def _faded_sum(blocks: Sequence[Tensor], kept: float) -> Tensor:
    """Return ``... + kept^2 * blocks[-3] + kept * blocks[-2] + blocks[-1]``; there is at least one."""
    return reduce(lambda total, block: torch.add(block, total, alpha=kept), blocks)


def usable_memory(candidates: Tensor, memory: Memory, present: Tensor) -> Tensor:
    """Return bool ``[B, C, N]``: both have the modality, and the context item is no padding and not the candidate.

    candidates: item ids ``[B, N]``; present: bool ``[V + 1]``, false at padding.
    """
    other: Tensor = candidates.unsqueeze(1) != memory.items.unsqueeze(2)
    usable: Tensor = other & present[memory.items].unsqueeze(2) & present[candidates].unsqueeze(1)
    return usable


class Expert(nn.Module):
    """An expert: attention of candidates, which ask with queries, over what its modality shows of the memory."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Module

    def __init__(self, features: FixedFeatures, heads: int, decay: float = 0.0) -> None:
        super().__init__()
        self._features = [features]  # in a list: the catalogue's, not this module's
        self.heads, self.decay = heads, decay

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Return what items ``[...]`` with vectors ``[..., D]`` ask with, ``[..., A]``."""
        raise NotImplementedError

    def values(self, shown: Tensor, vectors: Tensor) -> Tensor:
        """Return what is said of items with features ``[..., F]`` and vectors ``[..., D]``, ``[..., D]``."""
        said: Tensor = self.value(shown)
        return said

    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the view ``[B, M, N, D]`` of candidates ``[B, N]``, and where there is one, bool ``[B, M, N]``.

        queries: the candidates', ``[B, N, A]``; vectors: the memory's item vectors, ``[B, C, D]``.
        """
        features = self._features[0]
        usable = usable_memory(candidates, memory, features.present)
        shown = features.values[memory.items]
        value = self.values(shown, vectors)
        mixed, has_view = attend(queries, self.key(shown), value, usable, memory, self.heads, self.decay)
        return self.output(mixed), has_view


class MatchingExpert(Expert):
    """Attention by likeness: recent items of the memory whose features are like the candidate's.

    The weight of an item is a softmax of ``(W_q f_candidate + b) . (W_k f_item) / sqrt(A) - age / decay``, where W_q
    and W_k begin as the same principal axes of the features, so that the product begins as ``SHARPNESS`` times their
    cosine. The view is the so weighted mean of the item vectors themselves: the modality says which items of the memory
    speak for the candidate, and what they say, all users have taught them.
    """

    def __init__(self, features: FixedFeatures, attention_dim: int, decay: float) -> None:
        super().__init__(features, heads=1, decay=decay)
        self.query = nn.Linear(features.dim, attention_dim)
        self.key = nn.Linear(features.dim, attention_dim, bias=False)  # a bias would be the same for all items
        with torch.no_grad():
            axes = principal_axes(features.values, attention_dim)
            for layer in (self.query, self.key):
                layer.weight.copy_(axes * (SHARPNESS * attention_dim**0.5) ** 0.5)
            self.query.bias.zero_()
        self.output = nn.Identity()

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Return what items ``[...]`` ask with, ``[..., A]``; their item vectors are of no use here."""
        asked: Tensor = self.query(self._features[0].values[items])
        return asked

    def values(self, shown: Tensor, vectors: Tensor) -> Tensor:
        """Return the item vectors."""
        return vectors


class VisualExpert(Expert):
    """One-head attention: query = the candidate's picture, keys and values = the memory's pictures."""

    def __init__(self, features: FixedFeatures, dim: int, attention_dim: int, dropout: float) -> None:
        super().__init__(features, heads=1)
        self.query = nn.Linear(features.dim, attention_dim)
        self.key = nn.Linear(features.dim, attention_dim)
        self.value = nn.Linear(features.dim, dim)
        self.output = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), SharedDropout(dropout))

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Return what items ``[...]`` ask with, ``[..., A]``; their item vectors are of no use here."""
        asked: Tensor = self.query(self._features[0].values[items])
        return asked


class SemanticExpert(Expert):
    """Multi-head attention: query = the candidate's item vector, keys and values = the memory's texts."""

    def __init__(self, features: FixedFeatures, dim: int, attention_dim: int, heads: int, dropout: float) -> None:
        super().__init__(features, heads)
        self.query = nn.Linear(dim, attention_dim)
        self.key = nn.Linear(features.dim, attention_dim)
        self.value = nn.Linear(features.dim, dim)
        self.output = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU(), SharedDropout(dropout))

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Return what items with vectors ``[..., D]`` ask with, ``[..., A]``."""
        asked: Tensor = self.query(vectors)
        return asked
