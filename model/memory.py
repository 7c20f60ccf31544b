"""What an expert may attend over: the items that the user met before the position that predicts.

One pass over a window trains all its positions. The experts' memory is refreshed every R positions: the positions of a
segment share the K items met up to the segment's first input, so that the experts run once a segment and not once a
position. With R = 1 each position has a memory of its own; ranking always uses the latest one.

A context is cut into blocks of R items such that segment m sees the K / R blocks m, m + 1, ...; sums over a block are
shared by all the segments that see it (``experts.attend``).

Shapes: B windows, L positions, M segments of a window, K items of a memory, C context items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


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


def window_memory(context: Tensor, length: int, size: int, refresh: int) -> Memory:
    """Return the memory of training windows; size (K) must be a multiple of refresh (R).

    context: ``[B, P + L]`` item ids, left-padded with 0: the last ``length`` (L) are the window's inputs, those before
    are the user's earlier items (P may be 0). Segments are counted from a window's first item, not from its padding,
    so that a short history has memories as fresh as a long one's.

    The input at a position is met when its target is predicted, so a segment may use its first position's input.
    """
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
