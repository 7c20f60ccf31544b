"""Item vectors: the learned embedding that is tied between input and output, and the fixed item features.

Shapes: V items (rows 1..V; row 0 is padding), D hidden size, F width of a feature.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn


class FixedFeatures(nn.Module):
    """The catalogue's features of one modality. They are constants: neither trained, nor saved, nor sent."""

    values: Tensor
    present: Tensor

    def __init__(self, values: np.ndarray, present: np.ndarray) -> None:
        """values: float ``[V + 1, F]``; present: bool ``[V + 1]``, false where an item has none."""
        super().__init__()
        standard = _standardised(torch.tensor(values, dtype=torch.float32), torch.tensor(present))
        self.register_buffer("values", standard, persistent=False)
        self.register_buffer("present", torch.tensor(present, dtype=torch.bool), persistent=False)

    @property
    def dim(self) -> int:
        """Width F."""
        return int(self.values.shape[1])


def _standardised(values: Tensor, present: Tensor) -> Tensor:
    """Centre the features over the items that have them and give each row norm 1, whatever encoder made them."""
    if not present.any():
        return torch.zeros_like(values)
    centred = values - values[present].mean(dim=0)
    scaled = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)
    kept: Tensor = scaled * present.unsqueeze(1)
    return kept


class ItemVectors(nn.Module):
    """``e_c``: an item's id embedding, plus its projected features where ``representation`` is ``id+content``."""

    def __init__(
        self,
        num_items: int,
        dim: int,
        representation: Literal["id", "id+content"],
        visual: FixedFeatures | None,
        text: FixedFeatures | None,
    ) -> None:
        super().__init__()
        self.ids = nn.Embedding(num_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.ids.weight, std=0.02)
        with torch.no_grad():
            self.ids.weight[0].zero_()
        self.projections = nn.ModuleDict()
        # Features are held in a plain dict: they belong to the catalogue, not to this module.
        self._features: dict[str, FixedFeatures] = {}
        if representation == "id+content":
            for name, features in (("visual", visual), ("text", text)):
                if features is not None:
                    self._features[name] = features
                    projection = nn.Linear(features.dim, dim, bias=False)
                    nn.init.normal_(projection.weight, std=0.02)  # of rows of norm 1: the scale of the id embedding
                    self.projections[name] = projection

    def forward(self, items: Tensor) -> Tensor:
        """Return ``[..., D]`` for item ids ``[...]``; padding and missing features contribute zero."""
        vectors: Tensor = self.ids(items)
        for name, projection in self.projections.items():
            vectors = vectors + projection(self._features[name].values[items])
        return vectors
