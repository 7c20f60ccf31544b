"""What local training may have beside the loss of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Addition:
    """What a training has beside the loss: a term of it, and a word on the gradients before each step."""

    def term(self) -> Tensor | None:
        """Return a scalar that is added to the loss, or None."""
        return None

    def step(self) -> None:
        """Change the clipped gradients before the optimiser's step."""


@dataclass(frozen=True)
class Proximal(Addition):
    """FedProx (Li et al., MLSys 2020): ``mu / 2 * ||w - w_server||^2`` over the shared parameters."""

    mu: float
    parameters: Sequence[Tensor]
    server: list[Tensor]

    def term(self) -> Tensor:
        """Return the scalar that is added to the loss."""
        distances = [(own - server).square().sum() for own, server in zip(self.parameters, self.server, strict=True)]
        return 0.5 * self.mu * torch.stack(distances).sum()
