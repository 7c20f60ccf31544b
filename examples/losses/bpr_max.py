"""BPR-max: BPR against the negatives in proportion to how highly they are scored.

Balazs Hidasi, Alexandros Karatzoglou: Recurrent Neural Networks with Top-k Gains for Session-based Recommendations,
CIKM 2018. With s_j the softmax over the negatives' scores r_j and r_i the positive's,

    - log sum_j s_j sigmoid(r_i - r_j)  +  penalty * sum_j s_j r_j^2

    python sim.py quick loss=examples.losses.bpr_max:BPRMax loss_parameters.penalty=0.5
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from model.losses import RankingLoss, mean_of_valid


class BPRMax(RankingLoss):
    """penalty: weight of the negatives' own scores, 0 or more."""

    def __init__(self, penalty: float = 1.0) -> None:
        self.penalty = penalty

    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        shares = negative.log_softmax(dim=-1)
        ranked = (shares + logsigmoid(positive.unsqueeze(-1) - negative)).logsumexp(dim=-1)
        counted = negative.masked_fill(negative == -torch.inf, 0.0)  # such a negative has no share
        size = (shares.exp() * counted.square()).sum(dim=-1)
        return mean_of_valid(self.penalty * size - ranked, valid)
