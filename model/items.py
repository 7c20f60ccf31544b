"""Item vectors: the learned embedding that is tied between input and output, and the fixed item features.

Shapes: V items (rows 1..V; row 0 is padding), D hidden size, F width of a feature.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# Length of content in an item's vector before training, far above an id embedding's .16 (D = 64): what items have in
# common is there from the first round, and ids learn in what they differ.
CONTENT_LENGTH = 0.5


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


def principal_axes(values: Tensor, count: int) -> Tensor:
    """Return the ``count`` orthonormal axes ``[count, F]`` along which rows ``[V + 1, F]`` are longest, 0 beyond F."""
    rows = values.double()
    axes = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :count].T
    # An eigenvector's sign is anybody's choice: the largest entry is positive here.
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    return functional.pad(axes, (0, 0, 0, count - len(axes))).to(values.dtype)


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
                    self.projections[name] = _likeness_kept(features, dim)

    def forward(self, items: Tensor) -> Tensor:
        """Return ``[..., D]`` for item ids ``[...]``; padding and missing features contribute zero."""
        vectors: Tensor = self.ids(items)
        for name, projection in self.projections.items():
            vectors = vectors + projection(self._features[name].values[items])
        return vectors


def _likeness_kept(features: FixedFeatures, dim: int) -> nn.Linear:
    """Return a projection under which like items begin with like vectors: the principal axes, turned at random.

    Turned, so that two modalities do not speak in the same D directions.
    """
    projection = nn.Linear(features.dim, dim, bias=False)
    with torch.no_grad():
        turn = torch.linalg.qr(torch.randn(dim, dim))[0]
        projection.weight.copy_(CONTENT_LENGTH * turn @ principal_axes(features.values, dim))
    return projection
