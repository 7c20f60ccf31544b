"""GRU4Rec as a backbone: a recurrent network reads the window from its oldest item to its latest.

Balazs Hidasi, Alexandros Karatzoglou, Linas Baltrunas, Domonkos Tikk: Session-based Recommendations with Recurrent
Neural Networks, ICLR 2016. As there, a user's latest state scores the items; here by its product with the item vectors.

    python sim.py quick backbone=examples.backbones.gru4rec:GRU4Rec backbone_parameters.layers=2

A GRU has no stacked form, so on engine ``vectorized`` clients are trained one by one, and the run says so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedmoe.settings import ModelSettings
from model.sasrec import Backbone, Dropout


class GRU4Rec(Backbone):
    """layers: of the GRU, each of the model's hidden size."""

    def __init__(self, settings: ModelSettings, layers: int = 1) -> None:
        super().__init__()
        self.gru = nn.GRU(settings.dim, settings.dim, num_layers=layers, batch_first=True)
        self.dropout = Dropout(settings.dropout)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        length = vectors.shape[1]
        # Padding is on the left; read first it would change the states of all items that follow, so it is put behind.
        shift = (~present).sum(dim=1, keepdim=True)
        places = torch.arange(length, device=vectors.device)
        latest_last = ((places - shift) % length).unsqueeze(-1).expand_as(vectors)
        oldest_first = ((places + shift) % length).unsqueeze(-1).expand_as(vectors)
        states, _ = self.gru(self.dropout(vectors * vectors.shape[-1] ** 0.5).gather(1, oldest_first))
        read: Tensor = states.gather(1, latest_last)
        return read * present.unsqueeze(-1)
