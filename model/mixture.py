"""What can be said of experts' views without putting them together. Shapes: see ``model.experts``.

A view is a weighted mean of the K values of a memory: ``view_mn = sum_k w_mkn v_k / sum_k w_mkn``. What is asked of it
are its length and its dot product with the candidate's vector, and both follow from products of the values with each
other and with the candidates' vectors. So no tensor has the size ``[B, M, N, D]`` of all views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Subtracting the highest logit, as a softmax does, would let later items touch the last digits of earlier scores.
# Logits beyond 30 do not come up in training, and squares of exp(30), about 1e26, can still be summed in float32.
REACH = 30.0


@dataclass(frozen=True)
class Fading:
    """How weights of a memory's items fade with age: by 1/e with every ``decay`` later items; 0: they do not.

    An item's weight is that at the end of its block, of ``block`` (R) items. A segment adds up its ``blocks`` (K / R)
    blocks, each faded by ``kept`` a block.
    """

    decay: float
    block: int
    blocks: int

    @property
    def kept(self) -> float:
        """What is left of a weight a block later."""
        return exp(-self.block / self.decay) if self.decay else 1.0

    def within(self, items: int, like: Tensor) -> Tensor:
        """Return what is left at a block's end of the weight of each of ``items`` (C) items, ``[C, 1]``."""
        if not self.decay:
            return like.new_ones(items, 1)
        place = torch.arange(items, device=like.device, dtype=like.dtype) % self.block
        return ((place - (self.block - 1)) / self.decay).exp().unsqueeze(1)

    def across(self, items: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is left at a segment's end of what its items weighed at the ends of their blocks.

        That is ``[K, 1]``, and of all C items for all segments ``[M, C]``, 0 where a segment does not see an item.
        """
        later = torch.arange(self.blocks - 1, -1, -1, device=like.device, dtype=like.dtype)
        row = (self.kept**later).repeat_interleave(self.block)
        others = items - self.block * self.blocks
        return row.unsqueeze(1), functional.pad(row, (others, others)).unfold(0, items, self.block).flip(0)

    def segments(self, items: int) -> list[slice]:
        """Return which of C items each segment sees."""
        size = self.block * self.blocks
        return [slice(first, first + size) for first in range(0, items - size + 1, self.block)]


@dataclass(frozen=True)
class Mixture:
    """Views as what they are made of.

    logits ``[B, C, N]`` of the context's items for each candidate; counted ``[B, C, N]``, by what their exponentials
    are multiplied, 0 where an item does not count; floor: added to each exponential; values ``[B, C, D]``.
    """

    logits: Tensor
    counted: Tensor
    floor: float
    values: Tensor
    fading: Fading

    def agreement(self, vectors: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``norm(view) . vector``, where there is a view (bool), and the power, ``[B, M, N]`` each.

        vectors: the candidates', ``[B, N, D]``; norm: LayerNorm, or that of stacked clients, or none. power: the mean
        square of an entry of the view.
        """
        if torch.is_autocast_enabled(vectors.device.type):  # exponentials and squares need float32
            with torch.autocast(vectors.device.type, enabled=False):
                exact = replace(self, logits=self.logits.float(), values=self.values.float())
                return exact.agreement(vectors.float(), norm)
        means, centred = self._parted
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        asked = self.values
        if isinstance(weight, Tensor) and isinstance(bias, Tensor):  # the bias in one more row: vectors are read once
            level = self._by_window(bias).expand(centred.shape[0], -1, -1)
            asked = torch.cat([centred * self._by_window(weight), level], dim=1)
        products = asked @ vectors.transpose(1, 2)
        total, along, squared, mean = self._asked(products[:, : centred.shape[1]], centred, means)
        there = total > 0
        share = total.masked_fill(~there, 1.0).reciprocal()
        variance = squared.clamp_min(0) * share.square() / centred.shape[-1]
        power = variance.detach() + (mean * share.detach()).square()
        agreed = along * share
        if weight is not None:
            agreed = agreed * (variance + float(getattr(norm, "eps", 0.0))).rsqrt() + products[:, centred.shape[1] :]
        return agreed, there, power

    def _asked(self, agreed: Tensor, centred: Tensor, means: Tensor) -> Sequence[Tensor]:
        """Return sums over each segment: of the weights, of weight * agreed, and the square and mean of ``_Sums``."""
        if torch.is_grad_enabled():
            given = self.logits, agreed, centred, means.detach(), self.counted, self.floor, self.fading
            found: tuple[Tensor, ...] = _SegmentSums.apply(*given)  # type: ignore[no-untyped-call]
            return found
        weights, known = self._known
        return known.total, known.all @ (weights * agreed), known.squared, known.mean

    @cached_property
    def _parted(self) -> tuple[Tensor, Tensor]:
        """The values' means ``[B, C, 1]``, and the values without them."""
        means = self.values.mean(dim=-1, keepdim=True)
        return means, self.values - means

    @cached_property
    def _known(self) -> tuple[Tensor, _Sums]:
        """The weights and their sums, in ranking: kept for other norms of the same views."""
        weights, _ = _weights(self.logits, self.counted, self.floor)
        means, centred = self._parted
        return weights, _sums(weights, centred, means, self.fading)

    def _by_window(self, parameter: Tensor) -> Tensor:
        """Return a norm's parameter ``[D]``, or of each stacked client ``[C, D]``, as ``[1 or B, 1, D]``."""
        each = parameter.view(-1, 1, parameter.shape[-1])
        return each if len(each) == 1 else each.repeat_interleave(len(self.values) // len(each), dim=0)


class _Sums(NamedTuple):
    """Sums over each segment's memory, ``[B, M, N]`` each, and what their gradients need.

    total: of the weights; squared: the square of the length of the sum of weight * centred ``[B, C, D]``; mean: of
    weight * means ``[B, C, 1]``. products: of each segment, ``G w`` ``[B, K, N]``, where G are the products of its
    centred values with each other, so that the square is ``w G w``. own ``[K, 1]``, all ``[M, C]``: see
    ``Fading.across``.
    """

    total: Tensor
    squared: Tensor
    mean: Tensor
    products: Sequence[Tensor]
    own: Tensor
    all: Tensor


def _weights(logits: Tensor, counted: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Return the weights ``[B, C, N]``, and the exponentials that they are made of."""
    strengths = logits.clamp(-REACH, REACH).exp_()
    return (strengths + floor).mul_(counted), strengths


def _sums(weights: Tensor, centred: Tensor, means: Tensor, fading: Fading) -> _Sums:
    own, everything = fading.across(weights.shape[1], weights)
    products, squared = [], []
    for rows in fading.segments(weights.shape[1]):
        seen, values = weights[:, rows], centred[:, rows] * own
        products.append(torch.bmm(values @ values.transpose(1, 2), seen))
        squared.append((products[-1] * seen).sum(dim=1))
    mean = (everything * means.transpose(1, 2)) @ weights
    return _Sums(everything @ weights, torch.stack(squared, dim=1), mean, products, own, everything)


class _SegmentSums(torch.autograd.Function):
    """The sums of the weights, of weight * agreed ``[B, C, N]``, and the others of ``_Sums``, with a gradient by hand.

    Passes over tensors of the size of the weights are what takes the time. The last sum is for the report and has no
    gradient.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        """Take what ``Mixture`` holds; return the four sums."""
        logits, agreed, centred, means, counted, floor, ctx.fading = given
        weights, strengths = _weights(logits, counted, floor)
        found = _sums(weights, centred, means, ctx.fading)
        ctx.save_for_backward(weights, strengths, counted, agreed, centred, found.own, found.all, *found.products)
        ctx.mark_non_differentiable(found.mean)
        return found.total, found.all @ (weights * agreed), found.squared, found.mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of logits, agreed and centred."""
        weights, strengths, counted, agreed, centred, own, everything, *products = ctx.saved_tensors
        blocked = len(weights), -1, ctx.fading.block, weights.shape[2]  # [B, C / R, R, N]
        of_blocks = everything[:, :: ctx.fading.block].T  # [C / R, M]: within a block all have faded alike
        of_total, of_along = ((of_blocks @ each).unsqueeze(2) for each in gradients[:2])
        of_weights = torch.addcmul(of_total, of_along, agreed.view(blocked)).view_as(weights)
        of_agreed = (of_along * weights.view(blocked)).view_as(weights)
        of_centred = torch.zeros_like(centred)
        segments = ctx.fading.segments(weights.shape[1])
        for rows, product, of_square in zip(segments, products, gradients[2].unbind(dim=1), strict=True):
            seen, twice = weights[:, rows], 2 * of_square.unsqueeze(1)
            of_weights[:, rows].addcmul_(product, twice)
            of_products = torch.bmm(seen * twice, seen.transpose(1, 2))  # the gradient of G, twice
            of_centred[:, rows].addcmul_(torch.bmm(of_products, centred[:, rows] * own), own)
        return of_weights.mul_(counted).mul_(strengths), of_agreed, of_centred, None, None, None, None
