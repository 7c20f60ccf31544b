"""Dropout that treats all candidates of a window alike."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class SharedDropout(nn.Module):
    """Drops hidden units of ``[B, ..., D]`` with one mask a window (Gal & Ghahramani, NeurIPS 2016).

    The candidates of a window are compared with each other, so noise that differs between them would blur just what is
    learned; and one mask for hundreds of candidates costs next to nothing.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden`` with units dropped in training, unchanged otherwise."""
        if not self.training or self.probability == 0.0:
            return hidden
        ones = hidden.new_ones((hidden.shape[0],) + (1,) * (hidden.dim() - 2) + (hidden.shape[-1],))
        return hidden * functional.dropout(ones, self.probability)
