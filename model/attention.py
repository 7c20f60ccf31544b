"""Attention of candidates over the memory of each segment, and what can be said of it without putting it together.

Shapes: see ``model.experts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import exp

import torch
from torch import Tensor, nn
from torch.nn import functional

# Subtracting the highest logit, as a softmax does, would let later items touch the last digits of earlier scores.
# Logits beyond 60 do not come up in training, and exp(60), about 1e26, can still be summed in float32.
_REACH = 60.0


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

    def by_position(self, values: Tensor) -> Tensor:
        """Return ``[B, L, N]``: each position's row of values ``[B, M, N]``."""
        if self.segments == self.segment.shape[1] == 1:  # ranking; a gather would tie an exported program to one N
            return values
        # A product with rows of 0 and 1 is exact, and its gradient, unlike a gather's, is one more product.
        chosen = self.segment.unsqueeze(-1) == torch.arange(self.segments, device=self.segment.device)  # [B, L, M]
        return chosen.to(values.dtype) @ values


@dataclass(frozen=True)
class Mixture:
    """Views as what they are made of: ``view_n = sum_k shares_kn * values_k``, of a memory of one segment.

    shares ``[B, K, N]``, which add up to 1; values ``[B, K, D]``; available: bool ``[B, N]``, where there is a view.

    What is asked of a view needs no view: its dot products, its mean and its variance follow from the shares and from
    products of the K values with the candidates' vectors and with each other. K is often far below D.
    """

    shares: Tensor
    values: Tensor
    available: Tensor

    def agreement(self, vectors: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Return ``norm(view) . vector`` ``[B, N]`` for the candidates' vectors ``[B, N, D]``, and the power ``[B]``.

        norm: LayerNorm, or that of stacked clients, or none. power: the mean square of an entry of the views.
        """
        means = self.values.mean(dim=-1, keepdim=True)  # [B, K, 1]
        centred, mean = self.values - means, (self.shares * means).sum(dim=1)
        squares = self.shares * (centred @ centred.transpose(1, 2) @ self.shares)
        variance = squares.sum(dim=1).clamp_min(0) / centred.shape[-1]
        power = (variance + mean.square()).detach().mean(dim=1)
        weight, epsilon = getattr(norm, "weight", None), getattr(norm, "eps", 0.0)
        if not isinstance(weight, Tensor):
            return (self.shares * (self.values @ vectors.transpose(1, 2))).sum(dim=1), power
        assert isinstance(norm.bias, Tensor)  # there is one where there is a weight
        weight, bias = self._by_window(weight), self._by_window(norm.bias)
        along = (self.shares * ((centred * weight) @ vectors.transpose(1, 2))).sum(dim=1)
        return along * (variance + epsilon).rsqrt() + (vectors @ bias.transpose(1, 2)).squeeze(-1), power

    def _by_window(self, parameter: Tensor) -> Tensor:
        """Return a norm's parameter ``[D]``, or of each stacked client ``[C, D]``, as ``[1 or B, 1, D]``."""
        each = parameter.view(-1, 1, parameter.shape[-1])
        return each if len(each) == 1 else each.repeat_interleave(len(self.values) // len(each), dim=0)


def refresh_of(length: int, most: int) -> int:
    """Return how many positions share one memory in windows of ``length``: ``most``, and fewer in short ones.

    The first memory of a history holds one item. Were it the only one of a short history, its experts would have
    nothing else to learn from. A window of 30 positions or fewer has a memory for every tenth of them, one of 50 has 5.
    """
    return min(most, max(-(-length // 10), length * length // 250))


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
    query, key, value = (_split_heads(tensor, heads) for tensor in (query, key, value))
    weights = _strengths(query, key, usable.unsqueeze(1), memory.block, decay, floor)
    kept = exp(-memory.block / decay) if decay else 1.0  # of an item's weight, a block later
    summed = _sum_segments(weights, functional.pad(value, (0, 1), value=1.0), memory, kept)
    numerator, total = torch.split(summed, [value.shape[-1], 1], dim=-1)
    attended = numerator * total.clamp_min(torch.finfo(value.dtype).tiny).reciprocal()  # [B, H, M, N, D / H]
    return attended.permute(0, 2, 3, 1, 4).flatten(3), total[:, 0, ..., 0] > 0


def mixed(query: Tensor, key: Tensor, value: Tensor, usable: Tensor, decay: float, floor: float) -> Mixture:
    """Return the attention of one head over a memory of one segment, see ``attend``."""
    weights = _strengths(query, key, usable, key.shape[1], decay, floor)
    total = weights.sum(dim=1, keepdim=True)
    return Mixture(weights * total.clamp_min(torch.finfo(total.dtype).tiny).reciprocal(), value, total[:, 0] > 0)


def _strengths(query: Tensor, key: Tensor, usable: Tensor, block: int, decay: float, floor: float) -> Tensor:
    """Return the weights ``[..., C, N]`` before they are divided by their sum; items fade towards a block's end."""
    logits = key @ (query * query.shape[-1] ** -0.5).transpose(-2, -1)
    functional.hardtanh_(logits.detach(), -_REACH, _REACH)  # behind autograd's back: the reach is not met
    counted = usable.to(logits.dtype)
    if decay:
        place = torch.arange(logits.shape[-2], device=logits.device, dtype=logits.dtype) % block
        counted = counted * ((place - (block - 1)) / decay).exp().unsqueeze(1)
    strengths: Tensor = (logits.exp() + floor if floor else logits.exp()) * counted
    return strengths


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
