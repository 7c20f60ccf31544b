"""The two experts: attention of a candidate over the user's memory, in pictures and in text.

Keys and values are projected once per context item, queries once per candidate; nothing is computed once per
(candidate, memory) pair but the attention itself. The linear map that the reference applies after the visual
attention is applied to the values before it, which is the same since attention weights sum to 1.

Shapes: B windows, N candidates, C context items, M segments, A attention size, H heads, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.dropout import SharedDropout
from model.items import FixedFeatures
from model.memory import Memory

# Subtracting the highest logit, as a softmax does, would let later items touch the last digits of earlier scores.
# Logits beyond 60 do not come up in training, and exp(60), about 1e26, can still be summed in float32.
_REACH = 60.0


def attend(query: Tensor, key: Tensor, value: Tensor, usable: Tensor, memory: Memory, heads: int) -> Tensor:
    """Multi-head attention of every candidate over every segment's memory; where nothing is usable, zero.

    query ``[B, N, A]``, key ``[B, C, A]``, value ``[B, C, D]``, usable bool ``[B, N, C]`` -> ``[B, M, N, D]``.

    The logits do not depend on the segment. So the exponentials are taken once, the numerator and (as one more
    column of ones) the denominator of the softmax are summed once a block, and a segment adds up its blocks.
    """
    query, key, value = (_split_heads(tensor, heads) for tensor in (query, key, value))
    logits = (query @ key.transpose(2, 3)) * query.shape[-1] ** -0.5  # [B, H, N, C]
    exponentials = logits.clamp(-_REACH, _REACH).exp() * usable.unsqueeze(1)
    summed = _sum_segments(exponentials, functional.pad(value, (0, 1), value=1.0), memory)
    attended = summed[..., :-1] / summed[..., -1:].clamp_min(torch.finfo(value.dtype).tiny)  # [B, H, M, N, D / H]
    return attended.permute(0, 2, 3, 1, 4).flatten(3)


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    """``[B, X, A]`` -> ``[B, H, X, A / H]``."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _sum_segments(weights: Tensor, value: Tensor, memory: Memory) -> Tensor:
    """Return ``sum_c weights_nc * value_c`` over each segment's memory: ``[B, H, M, N, D / H + 1]``.

    weights ``[B, H, N, C]``, value ``[B, H, C, D / H + 1]``.
    """
    batch, heads, candidates = weights.shape[:3]
    blocked = weights.view(batch, heads, candidates, -1, memory.block).transpose(2, 3)  # [B, H, blocks, N, R]
    blocks = blocked @ value.view(batch, heads, -1, memory.block, value.shape[-1])
    return torch.stack([blocks[:, :, m : m + memory.blocks].sum(dim=2) for m in range(memory.segments)], dim=2)


def usable_memory(candidates: Tensor, memory: Memory, present: Tensor) -> Tensor:
    """Return bool ``[B, N, C]``: both have the modality, and the context item is no padding and not the candidate.

    candidates: item ids ``[B, N]``; present: bool ``[V + 1]``, false at padding.
    """
    other: Tensor = candidates.unsqueeze(2) != memory.items.unsqueeze(1)
    usable: Tensor = other & present[memory.items].unsqueeze(1) & present[candidates].unsqueeze(2)
    return usable


def has_view(usable: Tensor, memory: Memory) -> Tensor:
    """Return bool ``[B, M, N]``: does the segment's memory hold anything usable? usable: bool ``[B, N, C]``."""
    in_block = usable.view(*usable.shape[:2], -1, memory.block).any(dim=-1)  # [B, N, blocks]
    return in_block.unfold(2, memory.blocks, 1).any(dim=-1).transpose(1, 2)


class VisualExpert(nn.Module):
    """One-head attention: query = the candidate's picture, keys and values = the memory's pictures."""

    def __init__(self, features: FixedFeatures, dim: int, attention_dim: int, dropout: float) -> None:
        super().__init__()
        self._features = [features]  # in a list: the catalogue's, not this module's
        self.query = nn.Linear(features.dim, attention_dim)
        self.key = nn.Linear(features.dim, attention_dim)
        self.value = nn.Linear(features.dim, dim)
        self.output = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), SharedDropout(dropout))

    def forward(self, candidates: Tensor, vectors: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the view ``[B, M, N, D]`` of candidates ``[B, N]``, and where there is one, bool ``[B, M, N]``."""
        features = self._features[0]
        usable = usable_memory(candidates, memory, features.present)
        pictures = features.values[memory.items]
        mixed = attend(
            self.query(features.values[candidates]), self.key(pictures), self.value(pictures), usable, memory, heads=1
        )
        return self.output(mixed), has_view(usable, memory)


class SemanticExpert(nn.Module):
    """Multi-head attention: query = the candidate's item vector, keys and values = the memory's texts."""

    def __init__(self, features: FixedFeatures, dim: int, attention_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._features = [features]
        self.heads = heads
        self.query = nn.Linear(dim, attention_dim)
        self.key = nn.Linear(features.dim, attention_dim)
        self.value = nn.Linear(features.dim, dim)
        self.output = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU(), SharedDropout(dropout))

    def forward(self, candidates: Tensor, vectors: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the view ``[B, M, N, D]`` of candidates ``[B, N]``, and where there is one, bool ``[B, M, N]``.

        vectors: the candidates' item vectors ``[B, N, D]``.
        """
        features = self._features[0]
        usable = usable_memory(candidates, memory, features.present)
        texts = features.values[memory.items]
        mixed = attend(self.query(vectors), self.key(texts), self.value(texts), usable, memory, self.heads)
        return self.output(mixed), has_view(usable, memory)
