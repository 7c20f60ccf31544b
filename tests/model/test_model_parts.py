"""Attention over the memory, router, losses, groups: against arrays worked out by hand or the plain formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe.errors import FedMoEError
from fedmoe.settings import ModelSettings, TrainingSettings
from model.build import parameter_names
from model.experts import Memory, attend, latest_memory, refresh_of, usable_memory, window_memory
from model.losses import RankingLoss, bpr_loss, gbce_loss, load_balance_loss, ranking_loss, softmax_loss
from model.residual_moe import ItemRouter, router_weights
from model.sasrec import SASRec, attention_mask
from model.verify import small_model


def test_memory_of_a_window_by_hand() -> None:
    # Earlier items 1 2 3 4, window 5 6 7 8; K = 4, R = 2: the segments start at the inputs 5 and 7.
    memory = window_memory(torch.arange(1, 9).unsqueeze(0), length=4, size=4, refresh=2)
    assert memory.items.tolist() == [[2, 3, 4, 5, 6, 7]]
    seen = [memory.items[0, row].tolist() for row in memory.visible()]
    assert seen == [[2, 3, 4, 5], [4, 5, 6, 7]]
    assert memory.segment.tolist() == [[0, 0, 1, 1]]


def test_short_windows_have_fresh_memories() -> None:
    assert [refresh_of(length, 10) for length in (1, 10, 11, 20, 30, 40, 50, 200)] == [1, 1, 2, 2, 3, 5, 10, 10]
    assert refresh_of(50, 5) == 5
    memory = window_memory(torch.arange(1, 11).unsqueeze(0), length=10, size=10, refresh=3)
    assert (memory.segments, memory.block * memory.blocks) == (4, 9)  # of the ten items a multiple of three


def test_segments_of_a_short_history_start_at_its_first_item() -> None:
    # Padding, then 6 7 8: the segments start at 6 and 8.
    memory = window_memory(torch.tensor([[0, 0, 0, 6, 7, 8]]), length=4, size=2, refresh=2)
    assert memory.segment.tolist() == [[0, 0, 0, 1]]
    assert memory.used().tolist() == [[True, True]]
    assert [memory.items[0, row].tolist() for row in memory.visible()] == [[0, 6], [7, 8]]
    one = window_memory(torch.tensor([[0, 0, 0, 0, 7, 8]]), length=4, size=2, refresh=2)
    assert (one.segment.tolist(), one.used().tolist()) == ([[0, 0, 0, 0]], [[True, False]])
    assert latest_memory(torch.tensor([[1, 2, 3]]), 2).items.tolist() == [[2, 3]]


@given(
    seed=st.integers(0, 10_000),
    refresh=st.sampled_from([1, 2, 5]),
    heads=st.sampled_from([1, 2]),
    scale=st.sampled_from([0.1, 3.0, 60.0]),
    decay=st.sampled_from([0.0, 0.5, 5.0]),
)
@settings(max_examples=30, deadline=None)
def test_attention_equals_the_plain_softmax(seed: int, refresh: int, heads: int, scale: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    context = torch.randint(0, 12, (2, 16), generator=generator)
    memory = window_memory(context, 10, 10, refresh)
    size = memory.items.shape[1]
    query, key, value = (torch.randn(2, n, 8, generator=generator) for n in (7, size, size))
    candidates = torch.randint(1, 12, (2, 7), generator=generator)
    present = torch.rand(12, generator=generator) > 0.2
    present[0] = False
    usable = usable_memory(candidates, memory, present)
    logits = scale * torch.einsum("bnhd,bchd->bhnc", query.view(2, 7, heads, -1), key.view(2, size, heads, -1))
    allowed = usable.transpose(1, 2).unsqueeze(1) & memory.visible()[None, :, None]
    if decay:  # a softmax does not care from where ages are counted
        logits = logits + (8 // heads) ** 0.5 * torch.arange(size) / decay
    masked = (logits * (8 // heads) ** -0.5).unsqueeze(2).masked_fill(~allowed.unsqueeze(1), -1e9)
    weights = masked.softmax(dim=-1) * allowed.any(dim=-1)[:, None, :, :, None]
    expected = torch.einsum("bhmnc,bchd->bmnhd", weights, value.view(2, size, heads, -1)).flatten(3)
    found, has_view = attend(scale * query, key, value, usable, memory, heads, decay)
    if scale < 10:  # beyond logits of 60 weights are levelled, so that sums stay finite
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.isfinite().all()
    assert torch.equal(has_view, allowed.any(dim=-1))


def test_usable_memory_by_hand() -> None:
    memory = Memory(torch.tensor([[0, 3, 4, 5]]), torch.zeros(1, 1, dtype=torch.int64), block=4, blocks=1)
    present = torch.tensor([False, True, True, True, True, False])  # item 5 has no picture
    usable = usable_memory(torch.tensor([[3, 1, 5]]), memory, present)
    assert usable.transpose(1, 2).tolist() == [
        [[False, False, True, False], [False, True, True, False], [False, False, False, False]]
    ]


def test_router_masks_what_is_not_available() -> None:
    available = torch.tensor([[[[True, True], [True, False], [False, False]]]])
    weights = router_weights(ItemRouter(4, 2, 0.0)(torch.randn(1, 3, 4)), available)
    assert weights.shape == (1, 1, 3, 2)
    assert weights[0, 0, 0].sum().item() == pytest.approx(1.0)
    assert weights[0, 0, 1].tolist() == [1.0, 0.0]
    assert weights[0, 0, 2].tolist() == [0.0, 0.0]


def test_load_balance_counts_only_real_choices() -> None:
    weights = torch.tensor([[0.75, 0.25], [1.0, 0.0]]).view(1, 1, 2, 2)
    available = torch.tensor([[True, True], [True, False]]).view(1, 1, 2, 2)
    assert load_balance_loss(weights, available).item() == pytest.approx(2 * 0.25**2)
    assert load_balance_loss(weights[:, :, 1:], available[:, :, 1:]).item() == 0.0
    both = load_balance_loss(torch.stack([weights, weights.flip(2)]), torch.stack([available] * 2))  # of two clients
    assert both.tolist() == pytest.approx([2 * 0.25**2, 2 * 0.5**2])


POSITIVE = torch.tensor([[1.0, 5.0]])
NEGATIVE = torch.tensor([[[0.0, 2.0], [9.0, 9.0]]])
VALID = torch.tensor([[True, False]])  # the second position is padding


def test_softmax_loss_by_hand() -> None:
    expected = -math.log(math.e / (math.e + 1 + math.e**2))
    assert softmax_loss(POSITIVE, NEGATIVE, VALID).item() == pytest.approx(expected, rel=1e-6)


def test_bpr_loss_by_hand() -> None:
    expected = (math.log1p(math.exp(0 - 1)) + math.log1p(math.exp(2 - 1))) / 2
    assert bpr_loss(POSITIVE, NEGATIVE, VALID).item() == pytest.approx(expected, rel=1e-6)


def test_gbce_loss_by_hand() -> None:
    # 2 of 10 negatives: a = .2; t = .75: beta = .2 * (.75 * (1 - 5) + 5) = .4
    expected = 0.4 * math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.exp(2))
    assert gbce_loss(POSITIVE, NEGATIVE, VALID, num_items=11, calibration=0.75).item() == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("loss", [softmax_loss, bpr_loss, lambda p, n, v: gbce_loss(p, n, v, 3, 0.0)])
def test_losses_leave_out_a_negative_that_is_masked(loss) -> None:  # type: ignore[no-untyped-def]
    negative = NEGATIVE.clone()
    negative[0, 0, 1] = -torch.inf
    found = loss(POSITIVE, negative, VALID)
    assert found.isfinite()
    assert found < loss(POSITIVE, NEGATIVE, VALID)


class Renamed(RankingLoss):
    """A loss whose arguments have names of its own."""

    def __call__(self, liked: Tensor, others: Tensor, counted: Tensor, size: int) -> Tensor:
        return size * softmax_loss(liked, others, counted)


def test_a_loss_of_ones_own_is_taken_of_each_client_of_a_stack() -> None:
    training = TrainingSettings(loss=f"{__name__}:Renamed")
    stack = [torch.stack([each, each.flip(1)]) for each in (POSITIVE, NEGATIVE, VALID)]
    found = ranking_loss(*stack, 3, training)
    alone = [ranking_loss(*(each[client] for each in stack), 3, training) for client in range(2)]
    torch.testing.assert_close(found, torch.stack(alone))


def test_padding_is_never_looked_at() -> None:
    torch.manual_seed(0)
    sasrec = SASRec(ModelSettings(dim=8, blocks=2, heads=2, dropout=0.0, max_seq_len=6, attention_dim=8)).eval()
    vectors, present = torch.randn(1, 6, 8), torch.tensor([[False, False, True, True, True, True]])
    noise = torch.where(present.unsqueeze(-1), vectors, torch.randn(1, 6, 8) * 100)
    torch.testing.assert_close(sasrec(vectors, present)[:, 2:], sasrec(noise, present)[:, 2:])
    assert attention_mask(present)[0, 0].any(dim=-1).all()


def test_groups_hold_every_parameter_once() -> None:
    model = small_model(item_representation="id+content")
    groups = parameter_names(model)
    named = [name for names in groups.values() for name in names]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert groups["gate"] == ["gate.value"]
    assert "items.ids.weight" in groups["embedding"]
    assert all(groups.values())


def test_a_parameter_without_a_group_is_refused_by_name() -> None:
    model = small_model()
    model.stray = torch.nn.Linear(2, 2)
    with pytest.raises(FedMoEError, match=r"stray\.weight"):
        parameter_names(model)


def test_the_model_is_drawn_from_the_seed_alone() -> None:
    from data.registry import load_dataset
    from fedmoe.loading import load_settings
    from model.build import initial_arrays, parameter_groups

    settings, _ = load_settings(["dataset=synthetic", "users=20", "dim=8", "attention_dim=8"])
    dataset = load_dataset(settings)
    first = initial_arrays(settings, dataset)
    torch.rand(5)
    second = initial_arrays(settings, dataset)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert set(parameter_groups(settings, dataset)["experts.visual"]) <= set(first)
