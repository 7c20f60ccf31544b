"""Matching experts: what they attend to before any training, and what they say."""

from __future__ import annotations

import numpy as np
import torch

from fedmoe.settings import ModelSettings
from model.experts import SHARPNESS, MatchingExpert, Memory
from model.sasrec import FixedFeatures, principal_axes

# Four items with features of length 1 and mean 0: 1 and 3, and 2 and 4, are opposites.
FEATURES = FixedFeatures(
    np.array([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]], np.float32), np.array([False, True, True, True, True])
)


def view_of(candidate: int, items: list[int], decay: float, floor: float = 0.0) -> torch.Tensor:
    """The view of an expert for which the vector of item i is (i, 0): its first entry."""
    expert = MatchingExpert(FEATURES, ModelSettings(attention_dim=2, memory_decay=decay, memory_floor=floor))
    memory = Memory(torch.tensor([items]), torch.zeros(1, 1, dtype=torch.int64), len(items), 1)
    candidates = torch.tensor([[candidate]])
    vectors = torch.stack([memory.items, torch.zeros_like(memory.items)], dim=-1).float()
    with torch.inference_mode():
        view, has_view = expert(candidates, expert.queries(candidates, torch.zeros(1, 1, 2)), memory, vectors)
    assert has_view.all()
    return view[0, 0, 0, 0]


def test_like_items_count_before_any_training() -> None:
    # Candidate 2 and an item at right angles, and one that is its opposite: logits 0 and -SHARPNESS.
    weights = np.exp([0.0, -SHARPNESS])
    expected = (weights @ [1, 4]) / weights.sum()
    np.testing.assert_allclose(view_of(2, [1, 4], decay=0.0), expected, rtol=1e-5)


def test_recent_items_count() -> None:
    # 1 and 3 are equally unlike candidate 2; between them stands padding, so that 1 is two items older.
    weights = np.exp([-2 / 5, 0.0])
    expected = (weights @ [1, 3]) / weights.sum()
    np.testing.assert_allclose(view_of(2, [1, 0, 3], decay=5.0), expected, rtol=1e-5)


def test_with_a_floor_unlike_items_count_too_but_not_the_candidate() -> None:
    # Item 4 is the candidate's opposite and the latest; the candidate itself, 2, does not count; 1 is at right angles.
    weights = np.array([(1 + 3) * np.exp(-2 / 5), np.exp(-SHARPNESS) + 3])
    expected = (weights @ [1, 4]) / weights.sum()
    np.testing.assert_allclose(view_of(2, [1, 2, 4], decay=5.0, floor=3.0), expected, rtol=1e-5)


def test_what_the_memory_says_trains_the_items() -> None:
    expert = MatchingExpert(FEATURES, ModelSettings(attention_dim=2, memory_decay=5.0, memory_floor=0.0))
    memory = Memory(torch.tensor([[1, 2]]), torch.zeros(1, 1, dtype=torch.int64), 2, 1)
    candidates, vectors = torch.tensor([[4]]), torch.ones(1, 2, 3, requires_grad=True)
    expert(candidates, expert.queries(candidates, torch.zeros(1, 1, 3)), memory, vectors)[0].sum().backward()
    weights = torch.softmax(torch.tensor([0 - 1 / 5, -SHARPNESS]), dim=0)
    torch.testing.assert_close(vectors.grad, weights[None, :, None].expand(1, 2, 3), atol=1e-5, rtol=0)


def test_principal_axes_by_hand() -> None:
    rows = torch.tensor([[0.0, 0.0], [0.0, -3.0], [1.0, 0.0]])
    assert principal_axes(rows, 1).tolist() == [[0.0, 1.0]]
    assert principal_axes(rows, 3).tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
