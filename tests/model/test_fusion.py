"""Each fusion on arrays worked out by hand: one window of two positions, two candidates, two experts, D = 2.

LN(seq) = (1, 0), (0, 2); e = (1, 1), (2, 0). Both positions share a memory. Views of candidate 1: (1, 0) and (0, 1), of
candidate 2: (0, 2) and (2, 2). Router: .25 and .75, then .5 and .5.
"""

from __future__ import annotations

import math

import pytest
import torch

from model.experts import Memory
from model.fusion import cosine_scores, mixed_view, score_level_scores, sequence_scores
from model.residual_moe import agreement_of, dot_scores

STATES = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
VECTORS = torch.tensor([[[1.0, 1.0], [2.0, 0.0]]])
VIEWS = (torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0], [2.0, 2.0]]]]))  # of each expert
WEIGHTS = torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]])
MEMORY = Memory(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64), 1, 1)
MIXED = [[0.25, 0.75], [1.0, 2.0]]  # of candidates 1 and 2


def test_mixed_view() -> None:
    assert mixed_view(VIEWS, WEIGHTS)[0, 0].tolist() == MIXED


def test_sequence_scores() -> None:
    assert sequence_scores(STATES, VECTORS, "dot").tolist() == [[[1.0, 2.0], [2.0, 0.0]]]
    # sqrt(2) * cos: (1, 0) and (1, 1) meet at 45 degrees, (1, 0) and (2, 0) at none.
    cosines = sequence_scores(STATES, VECTORS, "cosine")[0]
    assert cosines[0].tolist() == pytest.approx([1.0, math.sqrt(2)])
    assert cosines[1].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def dots(weights: torch.Tensor, share: torch.Tensor | None) -> torch.Tensor:
    agreement = torch.stack([agreement_of(view, VECTORS) for view in VIEWS], dim=-1)
    return dot_scores(STATES, VECTORS, agreement, weights, share, MEMORY)


def test_residual() -> None:
    # Auxiliary with g = .5: (.125, .375) . (1, 1) = .5 and (.5, 1) . (2, 0) = 1, added to SASRec's scores.
    found = dots(0.5 * WEIGHTS, None)
    assert found.tolist() == [[[1.5, 3.0], [2.5, 1.0]]]


def test_residual_by_cosine() -> None:
    found = cosine_scores(dots(0.5 * WEIGHTS, None), STATES, VECTORS, VIEWS, 0.5 * WEIGHTS, None, MEMORY)
    # Position 1, candidate 2: final = (1, 0) + (.5, 1) = (1.5, 1), e = (2, 0).
    assert found[0, 0, 1].item() == pytest.approx(math.sqrt(2) * 1.5 / math.hypot(1.5, 1.0))
    # Position 2, candidate 1: final = (0, 2) + (.125, .375), e = (1, 1).
    expected = math.sqrt(2) * 2.5 / (math.hypot(0.125, 2.375) * math.sqrt(2))
    assert found[0, 1, 0].item() == pytest.approx(expected)


def test_competitive() -> None:
    # The backbone's share: .4 of candidate 1, .2 of candidate 2; the experts' weights are what they are.
    share = torch.tensor([[[0.4, 0.2]]])
    found = dots(WEIGHTS, share)[0]
    assert found[0].tolist() == pytest.approx([0.4 * 1 + 1.0, 0.2 * 2 + 2.0])
    assert found[1].tolist() == pytest.approx([0.4 * 2 + 1.0, 0.2 * 0 + 2.0])


def test_score_level() -> None:
    # sqrt(2) * cosine of the views with e: candidate 1: 1 and 1; candidate 2: 0 and 1.
    found = score_level_scores(STATES, VECTORS, VIEWS, 0.5 * WEIGHTS, MEMORY, "dot")[0]
    assert found[0].tolist() == pytest.approx([1 + 0.5 * 1.0, 2 + 0.5 * 0.5])
    assert found[1].tolist() == pytest.approx([2 + 0.5 * 1.0, 0 + 0.5 * 0.5])
