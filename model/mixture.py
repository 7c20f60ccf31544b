"""What can be said of experts' views without putting them together. Shapes: see ``model.experts``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


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
