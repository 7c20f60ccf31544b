r"""Mean reciprocal rank: 1 for the first place, 1/2 for the second, and so on.

    python sim.py quick evaluation.metrics='{mrr: examples.metrics.mrr:MRR}' \
        evaluation.metric_parameters='{mrr: {cutoff: 20}}'
"""

from __future__ import annotations

from fedmoe.metrics import Metric


class MRR(Metric):
    """cutoff: ranks beyond it count 0; 0: all count."""

    def __init__(self, cutoff: int = 0) -> None:
        self.cutoff = cutoff

    def of(self, rank: float) -> float:
        return 0.0 if self.cutoff and rank > self.cutoff else 1.0 / rank
