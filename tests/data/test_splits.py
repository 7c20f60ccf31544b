"""Leave-one-out splits."""

from __future__ import annotations

import numpy as np
import pytest

from data.splits import held_out, training_part

HISTORY = np.array([4, 8, 1, 9, 2], np.int32)


def test_the_last_item_is_tested_and_the_one_before_validates() -> None:
    assert training_part(HISTORY).tolist() == [4, 8, 1]
    context, target = held_out(HISTORY, "validation")
    assert (context.tolist(), target) == ([4, 8, 1], 9)
    context, target = held_out(HISTORY, "test")
    assert (context.tolist(), target) == ([4, 8, 1, 9], 2)


def test_the_shortest_history() -> None:
    assert training_part(HISTORY[:3]).tolist() == [4]
    assert held_out(HISTORY[:3], "validation")[0].tolist() == [4]


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="2 items cannot be split"):
        held_out(HISTORY[:2], "test")
    with pytest.raises(ValueError, match="not 'train'"):
        held_out(HISTORY, "train")  # type: ignore[arg-type]
