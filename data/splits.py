"""Leave-one-out: the last item of a history is the test item, the last but one the validation item."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["validation", "test"]


def training_part(history: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the items a client may train on: all but the last two."""
    return history[:-2]


def held_out(history: NDArray[np.int32], split: Split) -> tuple[NDArray[np.int32], int]:
    """Return the context, which is every item met before the held-out one, and the held-out item.

    Args:
        history: at least three items, oldest first.
        split: ``"validation"`` holds out ``history[-2]``, ``"test"`` holds out ``history[-1]``.

    Raises:
        ValueError: the history is too short to be split, or the split is unknown.
    """
    if len(history) < 3:
        raise ValueError(f"a history of {len(history)} items cannot be split: three are needed")
    if split == "validation":
        return history[:-2], int(history[-2])
    if split == "test":
        return history[:-1], int(history[-1])
    raise ValueError(f"split is 'validation' or 'test', not {split!r}")
