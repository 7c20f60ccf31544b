"""An expert of your own: the mean of the memory, the same for every candidate.

    python sim.py quick experts=examples.experts.average:Average
    python sim.py quick modalities.visual.expert=examples.experts.average:Average \
        modalities.visual.expert_parameters.decay=20
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmoe.settings import ModelSettings
from model.experts import Expert, Memory, attend, usable_memory
from model.sasrec import FixedFeatures


class Average(Expert):
    """A linear map of the mean of the memory's item vectors, of those items that have the modality.

    decay: an item's weight falls to 1/e with so many later items; 0: it does not.
    """

    def __init__(self, features: FixedFeatures, settings: ModelSettings, decay: float = 10.0) -> None:
        super().__init__(features)
        self.decay = decay
        self.output = nn.Linear(settings.dim, settings.dim)

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        return torch.zeros_like(vectors[..., :1])  # all items ask the same

    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        usable = usable_memory(candidates, memory, self.features.present)
        keys = torch.zeros_like(vectors[..., :1])
        mean, has_view = attend(queries, keys, vectors, usable, memory, heads=1, decay=self.decay)
        return self.output(mean), has_view
