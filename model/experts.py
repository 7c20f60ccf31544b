"""Experts: attention of a candidate over the items that the user met lately, each in one modality.

A kind of expert derives from ``Expert`` and overrides two methods. ``model.experts``, or ``expert`` of a modality, is
``package.module:Class``. ``MatchingExpert`` (default) begins as a rule that holds without any training (recent
items like the candidate count) and refines it. ``FeatureAttention`` and ``ItemAttention``, the reference's, learn from
nothing what to attend to.

One pass over a window trains all its positions. The memory is refreshed every R positions: the positions of a segment
share the K items met up to the segment's first input, so that the experts run once a segment and not once a position.
With R = 1 each position has a memory of its own; ranking always uses the latest one. A context is cut into blocks of R
items such that segment m sees the K / R blocks m, m + 1, ...; sums over a block are shared by all segments that see it.
Keys and values are projected once per context item, queries once per candidate.

Shapes: B windows, L positions, N candidates, C context items, K items of a memory, M segments of a window, A attention
size, H heads, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.settings import ModelSettings
from model.mixture import REACH, Fading, Mixture
from model.sasrec import FixedFeatures, principal_axes

_REFRESHES = (1, 2, 3, 5, 10, 20, 50, 100)  # positions that share a memory in windows with less than the most
SHARPNESS = 6.0  # of a matching expert before training: logit of an item whose features are the candidate's own


@dataclass(frozen=True)
class Memory:
    """items: the context's ids ``[B, C]``, oldest first, 0 = padding, with C = K + (M - 1) * R.

    segment: int ``[B, L]``, the segment of each position; block: R, the items of a block; blocks: K / R, the blocks
    that a segment sees.
    """

    items: Tensor
    segment: Tensor
    block: int
    blocks: int

    @property
    def segments(self) -> int:
        """M, the number of segments."""
        return int(self.items.shape[1]) // self.block - self.blocks + 1

    def visible(self) -> Tensor:
        """Return bool ``[M, C]``: the context items that each segment sees, padding included."""
        block_of_item = torch.arange(self.items.shape[1], device=self.items.device) // self.block
        behind = block_of_item - torch.arange(self.segments, device=self.items.device).unsqueeze(1)
        return (behind >= 0) & (behind < self.blocks)

    def used(self) -> Tensor:
        """Return bool ``[B, M]``: segments that a position of the window belongs to.

        A window that is shorter than others of its batch has none for the last ones.
        """
        return self.segment[:, -1:] >= torch.arange(self.segments, device=self.segment.device)

    def by_position(self, values: Tensor) -> Tensor:
        """Return ``[B, L, N]``: each position's row of values ``[B, M, N]``."""
        if self.segments == self.segment.shape[1] == 1:  # ranking; a gather would tie an exported program to one N
            return values
        # A product with rows of 0 and 1 is exact, and its gradient, unlike a gather's, is one more product.
        chosen = self.segment.unsqueeze(-1) == torch.arange(self.segments, device=self.segment.device)  # [B, L, M]
        return chosen.to(values.dtype) @ values


def refresh_of(length: int, most: int) -> int:
    """Return how many positions share one memory in windows of ``length``: ``most``, and fewer in short ones.

    The first memory of a history holds one item. Were it the only one of a short history, its experts would have
    nothing else to learn from. A window of 30 positions or fewer has ten memories or more, one of 50 has 5. One of few
    numbers, so that clients with windows of different lengths can be trained in one stack.
    """
    wanted = min(most, max(-(-length // 10), length * length // 250))
    return wanted if wanted == most else max(positions for positions in _REFRESHES if positions <= wanted)


def window_memory(context: Tensor, length: int, size: int, refresh: int) -> Memory:
    """Return the memory of training windows, of at most ``size`` items (K), a multiple of refresh (R).

    context: ``[B, P + L]`` item ids, left-padded with 0: the last ``length`` (L) are the window's inputs, those before
    are the user's earlier items (P may be 0). Segments are counted from a window's first item, not from its padding,
    so that a short history has memories as fresh as a long one's.

    The input at a position is met when its target is predicted, so a segment may use its first position's input.
    """
    size -= size % refresh
    size = min(size, -(-context.shape[1] // refresh) * refresh)  # more than there is would be padding
    first = (context[:, -length:] > 0).long().argmax(dim=1, keepdim=True)  # [B, 1], position of the first item
    positions = torch.arange(length, device=context.device)
    segment = ((positions - first) // refresh).clamp_min(0)
    ahead = (-(-length // refresh) - 1) * refresh
    padded = functional.pad(context, (size, ahead))
    oldest = context.shape[1] - length + first + 1  # in ``padded``: K - 1 items before the window's first
    items = padded.gather(1, oldest + torch.arange(size + ahead, device=context.device))
    return Memory(items, segment, refresh, size // refresh)


def latest_memory(context: Tensor, size: int) -> Memory:
    """Return the memory for ranking what follows ``context`` ``[B, C]``: its latest ``size`` items, one segment."""
    recent = context[:, -size:]
    return Memory(recent, torch.zeros_like(recent[:, :1]), recent.shape[1], 1)


class Expert(nn.Module, ABC):
    """What one modality says of a candidate to a user: a vector of the size of an item vector, a *view*.

    A constructor takes ``features``, the modality's, and ``settings``, the model's; further arguments are those of
    ``expert_parameters``. To be trained in stacks of clients, parameters must be those of Linear and LayerNorm layers.
    """

    def __init__(self, features: FixedFeatures) -> None:
        super().__init__()
        self._features = [features]  # in a list: the catalogue's, not this module's

    @property
    def features(self) -> FixedFeatures:
        """The features of the catalogue's items."""
        return self._features[0]

    @abstractmethod
    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Return what items ``[...]`` with vectors ``[..., D]`` ask with, ``[..., A]``, whoever the user is."""

    @abstractmethod
    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the view ``[B, M, N, D]`` of candidates ``[B, N]``, and where there is one, bool ``[B, M, N]``.

        queries: the candidates', ``[B, N, A]``; vectors: the memory's item vectors, ``[B, C, D]``.
        """

    def mixture(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> Mixture | None:
        """Return the same as ``forward`` as what it is made of; None where that would not be quicker, or is unknown."""
        return None


class AttentionExpert(Expert):
    """An expert by attention: keys and values are made of what the memory's items show in the modality."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Module
    heads, decay, floor = 1, 0.0, 0.0

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Ask with the items' features."""
        asked: Tensor = self.query(self.features.values[items])
        return asked

    def values(self, shown: Tensor, vectors: Tensor) -> Tensor:
        """Return what is said of items with features ``[..., F]`` and vectors ``[..., D]``, ``[..., D]``."""
        said: Tensor = self.value(shown)
        return said

    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Attend over the items of the memory that have the modality."""
        query, key, value, usable = self._parts(candidates, queries, memory, vectors)
        attended, has_view = attend(query, key, value, usable, memory, self.heads, self.decay, self.floor)
        return self.output(attended), has_view

    def mixture(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> Mixture | None:
        """Return the weights of a short memory, where nothing comes after the attention."""
        short = memory.block * memory.blocks <= vectors.shape[-1]
        if not short or self.heads > 1 or not isinstance(self.output, nn.Identity):
            return None
        query, key, value, usable = self._parts(candidates, queries, memory, vectors)
        fading = Fading(self.decay, memory.block, memory.blocks)
        return Mixture(*_logits(query, key, usable, fading), self.floor, value, fading)

    def _parts(
        self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values, and which items of the memory can be attended to."""
        usable = usable_memory(candidates, memory, self.features.present)
        shown = self.features.values[memory.items]
        return queries, self.key(shown), self.values(shown, vectors), usable


class MatchingExpert(AttentionExpert):
    """Attention by likeness: recent items of the memory whose features are like the candidate's.

    The weight of an item is ``(exp(likeness) + floor) * exp(-age / decay)``, over the sum of all, with the likeness
    ``(W_q f_candidate + b) . (W_k f_item) / sqrt(A)``. W_q and W_k begin as the same principal axes of the features, so
    that it begins as ``SHARPNESS`` times their cosine. Without the floor what was met last hardly counts where older
    items are alike.

    The view is the so weighted mean of the item vectors themselves: the modality says which items of the memory speak
    for the candidate, and what they say, all users have taught them.
    """

    def __init__(self, features: FixedFeatures, settings: ModelSettings) -> None:
        super().__init__(features)
        size, self.decay, self.floor = settings.attention_dim, settings.memory_decay, settings.memory_floor
        self.query = nn.Linear(features.dim, size)
        self.key = nn.Linear(features.dim, size, bias=False)  # a bias would be the same for all items
        with torch.no_grad():
            axes = principal_axes(features.values, size)
            for layer in (self.query, self.key):
                layer.weight.copy_(axes * (SHARPNESS * size**0.5) ** 0.5)
            self.query.bias.zero_()
        self.output = nn.Identity()

    def values(self, shown: Tensor, vectors: Tensor) -> Tensor:
        """Return the item vectors."""
        return vectors


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    usable: Tensor,
    memory: Memory,
    heads: int,
    decay: float = 0.0,
    floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Multi-head attention of every candidate over every segment's memory; where nothing is usable, zero.

    query ``[B, N, A]``, key ``[B, C, A]``, value ``[B, C, D]``, usable bool ``[B, C, N]`` -> what was attended to
    ``[B, M, N, D]``, and where there was anything, bool ``[B, M, N]``. decay: an item's weight falls to 1/e with so
    many later items; 0: never. floor: added to the exponential of every logit; 0: a softmax.

    The logits do not depend on the segment. So the exponentials are taken once, the numerator and (as one more
    column of ones) the denominator of the softmax are summed once a block, and a segment adds up its blocks. Items fade
    towards the end of their block, and blocks in the sum.
    """
    fading = Fading(decay, memory.block, memory.blocks)
    query, key, value = (_split_heads(tensor, heads) for tensor in (query, key, value))
    logits, counted = _logits(query, key, usable.unsqueeze(1), fading)
    functional.hardtanh_(logits.detach(), -REACH, REACH)  # behind autograd's back: the reach is not met
    weights = (logits.exp() + floor if floor else logits.exp()) * counted
    summed = _sum_segments(weights, functional.pad(value, (0, 1), value=1.0), memory, fading.kept)
    numerator, total = torch.split(summed, [value.shape[-1], 1], dim=-1)
    attended = numerator * total.clamp_min(torch.finfo(value.dtype).tiny).reciprocal()  # [B, H, M, N, D / H]
    return attended.permute(0, 2, 3, 1, 4).flatten(3), total[:, 0, ..., 0] > 0


def _logits(query: Tensor, key: Tensor, usable: Tensor, fading: Fading) -> tuple[Tensor, Tensor]:
    """Return the logits ``[..., C, N]``, and what their exponentials are multiplied by."""
    logits = (key * key.shape[-1] ** -0.5) @ query.transpose(-2, -1)  # there are fewer items than candidates
    left = fading.within(logits.shape[-2], logits)
    return logits, torch.where(usable, left, torch.zeros_like(left))


def _split_heads(tensor: Tensor, heads: int) -> Tensor:
    """``[B, X, A]`` -> ``[B, H, X, A / H]``."""
    return tensor.view(*tensor.shape[:2], heads, -1).transpose(1, 2)


def _sum_segments(weights: Tensor, value: Tensor, memory: Memory, kept: float) -> Tensor:
    """Return ``sum_c weights_cn * value_c`` over each segment's memory: ``[B, H, M, N, D / H + 1]``.

    weights ``[B, H, C, N]``, value ``[B, H, C, D / H + 1]``; kept: what is left of a block's sum a block later.
    """
    batch, heads = weights.shape[:2]
    blocked = weights.view(batch, heads, -1, memory.block, weights.shape[-1])  # [B, H, blocks, R, N]
    blocks = blocked.transpose(3, 4) @ value.reshape(batch, heads, -1, memory.block, value.shape[-1])
    if memory.segments == memory.blocks == 1:
        return blocks
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
