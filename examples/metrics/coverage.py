r"""Catalogue coverage: the share of all items that is in somebody's list (Ge et al., RecSys 2010).

    python sim.py quick evaluation.metrics='{coverage: examples.metrics.coverage:Coverage}' \\
        evaluation.metric_parameters='{coverage: {length: 20}}'
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmoe.metrics import CatalogueMetric


class Coverage(CatalogueMetric):
    """length: items of a user's list."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def of(self, lists: NDArray[np.int64], num_items: int) -> float:
        return len(np.unique(lists)) / num_items
