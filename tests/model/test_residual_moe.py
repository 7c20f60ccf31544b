"""The mixture: what it equals, what it may see, and what happens where a modality is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe.settings import ModelSettings
from model import verify
from model.build import parameter_names
from model.experts import window_memory
from model.residual_moe import ResidualMoE
from model.sasrec import CONTENT_LENGTH, FixedFeatures
from model.values import Modality
from model.verify import ITEMS, LENGTH, small_batch, small_model

FUSIONS = ("residual", "competitive", "score")
EXPERTS = ("matching", "attention")


@pytest.mark.parametrize("fact", verify.FACTS)
def test_fact(fact: str) -> None:
    assert verify.FACTS[fact]()


def test_verify_exits_1_if_a_fact_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main() == 0
    monkeypatch.setitem(verify.FACTS, next(iter(verify.FACTS)), lambda: False)
    assert verify.main() == 1
    assert "FAILS  1." in capsys.readouterr().out


def sasrec_scores(mixture: ResidualMoE, context: Tensor, candidates: Tensor) -> Tensor:
    sasrec = small_model(mixture=False, score=mixture.settings.score)
    sasrec.load_state_dict({name: mixture.state_dict()[name] for name in sasrec.state_dict()})
    return sasrec(context, LENGTH, candidates).scores


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("fusion", ["residual", "score"])
def test_gate_0_is_sasrec_to_the_last_bit(fusion: str, score: str) -> None:
    context, candidates = small_batch()
    model = small_model(fusion=fusion, score=score)
    with torch.no_grad():
        model.gate.value.zero_()
    assert torch.equal(model(context, LENGTH, candidates).scores, sasrec_scores(model, context, candidates))


def long_way(model: ResidualMoE, context: Tensor, candidates: Tensor) -> Tensor:
    """Scores by the formulas of the reference, one position and one candidate at a time."""
    a = model.settings
    states, vectors = model.states(context[:, -LENGTH:]), model.items(candidates)
    memory = model.memory(context, LENGTH)
    said = model.expert_views(candidates, model.item_side(candidates), memory, {})
    scores = torch.zeros(len(context), LENGTH, candidates.shape[1])
    for b in range(len(context)):
        for t in range(LENGTH):
            for n in range(candidates.shape[1]):
                m = int(memory.segment[b, t])
                weights, views = said.weights[b, m, n], torch.stack([view[b, m, n] for view in said.views])
                seq, e = states[b, t], vectors[b, n]
                if a.fusion == "score":
                    own = a.dim**0.5 * torch.cosine_similarity(views, e.expand_as(views), dim=-1)
                    main = seq @ e if a.score == "dot" else a.dim**0.5 * torch.cosine_similarity(seq, e, dim=0)
                    scores[b, t, n] = main + model.gate.value * (weights * own).sum()
                    continue
                if a.fusion == "competitive":
                    final = weights[0] * seq + weights[1] * views[0] + weights[2] * views[1]
                else:
                    final = seq + model.gate.value * (weights[0] * views[0] + weights[1] * views[1])
                dot = a.score == "dot"
                scores[b, t, n] = final @ e if dot else a.dim**0.5 * torch.cosine_similarity(final, e, dim=0)
    return scores


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_equals_the_formula(fusion: str, score: str, experts: str) -> None:
    context, candidates = small_batch()
    model = small_model(fusion=fusion, score=score, experts=experts)
    scores = model(context, LENGTH, candidates).scores
    torch.testing.assert_close(scores, long_way(model, context, candidates), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(scores, sasrec_scores(model, context, candidates))


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("fusion", FUSIONS)
@given(position=st.integers(0, LENGTH - 2), seed=st.integers(0, 1000), refresh=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=15, deadline=None)
def test_no_later_item_changes_an_earlier_score(
    fusion: str, experts: str, position: int, seed: int, refresh: int
) -> None:
    model = small_model(fusion=fusion, experts=experts, item_representation="id+content", memory_refresh=refresh)
    context, candidates = small_batch()
    other = torch.randint(1, ITEMS + 1, context.shape, generator=torch.Generator().manual_seed(seed))
    later = torch.arange(context.shape[1]) > context.shape[1] - LENGTH + position
    changed = torch.where(later & (context > 0), other, context)
    before, after = (model(items, LENGTH, candidates).scores for items in (context, changed))
    predicts = (context[:, -LENGTH:] > 0) & (torch.arange(LENGTH) <= position)  # padding predicts nothing
    torch.testing.assert_close(before[predicts], after[predicts], atol=1e-6, rtol=0)


@pytest.mark.parametrize("experts", EXPERTS)
def test_ranking_uses_the_same_scores_as_training(experts: str) -> None:
    # With a memory of its own for every position, ranking after a context is the window's last position.
    model = small_model(memory_refresh=1, experts=experts, item_representation="id+content")
    context, candidates = small_batch()
    torch.testing.assert_close(
        model.rank_scores(context, candidates), model(context, LENGTH, candidates).scores[:, -1], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("fusion", ["residual", "competitive", "score"])
def test_ranking_is_the_same_with_the_catalogue_at_hand(fusion: str) -> None:
    model = small_model(fusion=fusion, item_representation="id+content")
    context, candidates = small_batch()
    catalogue = model.item_side(torch.arange(model.num_items + 1))
    found = model.rank_catalogue(context, catalogue).gather(1, candidates)
    torch.testing.assert_close(found, model.rank_scores(context, candidates), atol=1e-6, rtol=1e-5)
    with torch.inference_mode():
        reading = model.read(context, catalogue)
        model.rank_catalogue(context, catalogue, reading)
        for name, parameter in model.named_parameters():
            if name.startswith(("router", "gate", "norms")):
                parameter.add_(torch.randn_like(parameter))
        again = model.routed(catalogue)
        found, anew = model.rank_catalogue(context, again, reading), model.rank_catalogue(context, again)
    assert torch.equal(found, anew)


@pytest.mark.parametrize("floor", [0.0, 4.0])
@pytest.mark.parametrize("refresh", [8, 2])
@pytest.mark.parametrize("norms", [True, False])
def test_a_mixture_says_what_the_view_put_together_says(norms: bool, refresh: int, floor: float) -> None:
    """Agreement, power and gradients; some candidates and items lack the modality, one user has met nothing."""
    model = small_model(norms, item_representation="id+content", memory_refresh=refresh, memory_floor=floor)
    context, candidates = small_batch()
    context[1] = 0
    memory = window_memory(context, LENGTH, model.settings.memory_size, model.settings.memory_refresh)
    assert (memory.segments == 1) == (refresh == 8)
    sides = [model.item_side(candidates) for _ in range(2)]
    mixtures = model.mixtures(candidates, sides[1], memory)
    assert len(mixtures) == 2
    said = [model.expert_views(candidates, *each) for each in ((sides[0], memory, {}), (sides[1], memory, mixtures))]
    assert said[0].views and not said[1].views
    assert torch.equal(said[0].available, said[1].available)
    assert (said[0].available.any(dim=-1)).any() and not said[0].available[1].any()
    there = said[0].available
    torch.testing.assert_close(said[0].agreement[there], said[1].agreement[there], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(said[0].power, said[1].power, atol=1e-6, rtol=1e-4)
    gradients = []
    for each in said:
        model.zero_grad()
        (each.weights * each.agreement).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3, msg=name)


def test_candidate_is_masked_out_of_its_own_memory() -> None:
    model = small_model()
    context = torch.full((1, 2 * LENGTH), 7)
    said = model(context, LENGTH, torch.tensor([[7, 8]])).views
    assert not said.available[:, :, 0].any()
    assert said.available[:, :, 1].all()
    assert (said.weights[:, :, 0] == 0).all()


def features(width: int, without: list[int]) -> FixedFeatures:
    present = torch.arange(ITEMS + 1) > 0
    present[without] = False
    return FixedFeatures(torch.randn(ITEMS + 1, width).numpy(), present.numpy())


def model_with(**modalities: FixedFeatures) -> ResidualMoE:
    torch.manual_seed(0)
    sizes = ModelSettings(dim=16, max_seq_len=LENGTH, attention_dim=8, memory_size=8, memory_refresh=4)
    return ResidualMoE(sizes, ITEMS, {name: Modality(each) for name, each in modalities.items()}).eval()


def test_one_modality_missing_gives_the_other_all_the_weight() -> None:
    context, candidates = small_batch()
    model = model_with(second=features(10, []))
    assert list(model.experts) == ["second"]
    said = model(context, LENGTH, candidates).views
    torch.testing.assert_close(said.weights, said.available.float())


def test_both_modalities_missing_is_sasrec() -> None:
    context, candidates = small_batch()
    model, with_text = model_with(), model_with(second=features(10, []))
    assert not model.experts
    assert model.router is None
    assert model.gate is None
    model.load_state_dict({name: with_text.state_dict()[name] for name in model.state_dict()})
    with torch.no_grad():
        with_text.gate.value.zero_()
    assert torch.equal(model(context, LENGTH, candidates).scores, with_text(context, LENGTH, candidates).scores)


def test_an_item_without_a_modality_is_left_to_the_other_expert() -> None:
    context, _ = small_batch()
    candidates = torch.tensor([[5, 6], [5, 6]])
    said = model_with(first=features(12, [5]), second=features(10, [])).forward(context, LENGTH, candidates).views
    spoken = said.available[0, :, 0]
    assert not spoken[:, 0].any()
    torch.testing.assert_close(said.weights[0, :, 0, 1], spoken[:, 1].float())
    assert (said.weights[0, :, 1] > 0).all()


def test_an_item_without_any_modality_has_sasrecs_score() -> None:
    context, _ = small_batch()
    candidates = torch.tensor([[5, 6], [5, 6]])
    model = model_with(first=features(12, [5]), second=features(10, [5]))
    scores = model(context, LENGTH, candidates).scores
    with torch.no_grad():
        model.gate.value.zero_()
    without = model(context, LENGTH, candidates).scores
    assert torch.equal(scores[:, :, 0], without[:, :, 0])
    assert not torch.equal(scores[:, :, 1], without[:, :, 1])


def test_each_layer_norm_can_be_switched_off() -> None:
    modalities = {name: Modality(features(4, []), norm=name != "second") for name in ("first", "second")}
    names = [name for name, _ in ResidualMoE(ModelSettings(dim=8), ITEMS, modalities).norms.named_parameters()]
    assert names == ["sequence.weight", "sequence.bias", "first.weight", "first.bias"]
    names = [name for name, _ in small_model(norm_sequence=False).norms.named_parameters()]
    assert names == ["first.weight", "first.bias", "second.weight", "second.bias"]


def test_three_modalities_share_the_router() -> None:
    context, candidates = small_batch()
    model = model_with(first=features(12, []), second=features(10, [5]), third=features(3, [6]))
    said = model(context, LENGTH, candidates).views
    assert said.weights.shape[-1] == 3
    torch.testing.assert_close(
        said.weights.sum(dim=-1)[said.available.any(dim=-1)],
        torch.ones(()).expand(int(said.available.any(dim=-1).sum())),
    )
    groups = parameter_names(model)
    assert list(groups) == [
        "embedding",
        "backbone",
        "experts.first",
        "experts.second",
        "experts.third",
        "router",
        "gate",
        "norms",
    ]
    assert all(groups.values())


def test_id_and_content_starts_new_items_near_similar_ones() -> None:
    values = np.zeros((ITEMS + 1, 12), np.float32)
    values[1:, :4] = np.random.default_rng(1).normal(size=(ITEMS, 4))
    values[2] = values[1] + 0.01
    text = FixedFeatures(values, np.arange(ITEMS + 1) > 0)
    torch.manual_seed(0)
    model = ResidualMoE(ModelSettings(dim=16, item_representation="id+content"), ITEMS, {"first": Modality(text)})
    with torch.no_grad():
        model.items.ids.weight.zero_()
    vectors = model.items(torch.arange(ITEMS + 1))
    assert (vectors[0] == 0).all()
    likeness = torch.cosine_similarity(vectors[1], vectors[2:], dim=-1)
    assert likeness.argmax() == 0 and likeness[0] > 0.99
    # All axes that matter are kept, so that vectors are as like as features are.
    torch.testing.assert_close(vectors @ vectors.T, CONTENT_LENGTH**2 * text.values @ text.values.T, atol=1e-5, rtol=0)
