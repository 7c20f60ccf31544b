"""``python -m model.verify``: check the five facts of the residual mixture on a small model; exit 1 if one fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from fedmoe.settings import ModelSettings
from model.losses import load_balance_loss
from model.residual_moe import ResidualMoE
from model.sasrec import FixedFeatures
from model.values import Modality

ITEMS, LENGTH = 40, 8
WIDTHS = {"first": 12, "second": 10}  # of the features of two modalities


def small_model(norm: bool = True, **changes: object) -> ResidualMoE:
    """Return a small model of two modalities, in evaluation mode.

    norm: whether the experts have a LayerNorm; changes: other values of ``ModelSettings``.
    """
    fields: dict[str, object] = {
        "dim": 16, "max_seq_len": LENGTH, "attention_dim": 8, "memory_size": 8, "memory_refresh": 4, "gate_init": 0.3,
    }  # fmt: skip
    settings = ModelSettings.model_validate(fields | changes)
    generator = torch.Generator().manual_seed(1)
    present = (torch.arange(ITEMS + 1) > 0).numpy()
    kinds = ("feature_attention", "item_attention") if settings.experts == "attention" else (settings.experts,) * 2
    modalities = {
        name: Modality(
            FixedFeatures(torch.randn(ITEMS + 1, width, generator=generator).numpy(), present), kind, norm=norm
        )
        for (name, width), kind in zip(WIDTHS.items(), kinds, strict=True)
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResidualMoE(settings, ITEMS, modalities)
        with torch.no_grad():  # as after some training: every part has something to say
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            model.items.ids.weight[0].zero_()
    return model.eval()


def small_batch() -> tuple[Tensor, Tensor]:
    """Return a context ``[2, 16]``, the second user's being short, and candidates ``[2, 12]``."""
    generator = torch.Generator().manual_seed(2)
    context = torch.randint(1, ITEMS + 1, (2, 2 * LENGTH), generator=generator)
    context[1, :-3] = 0
    return context, torch.randint(1, ITEMS + 1, (2, 12), generator=generator)


def backbone_is_preserved() -> bool:
    """SASRec is the backbone and its output is preserved: with gate 0 the scores are its own to the last bit."""
    context, candidates = small_batch()
    mixture, sasrec = small_model(), small_model(mixture=False)
    sasrec.load_state_dict({name: mixture.state_dict()[name] for name in sasrec.state_dict()})
    own = sasrec(context, LENGTH, candidates).scores
    differs = not torch.equal(mixture(context, LENGTH, candidates).scores, own)
    assert mixture.gate is not None
    with torch.no_grad():
        mixture.gate.value.zero_()
    return differs and torch.equal(mixture(context, LENGTH, candidates).scores, own)


def router_weighs_two_experts() -> bool:
    """The router weighs the auxiliary experts alone, here two, and its weights sum to 1."""
    context, candidates = small_batch()
    views = small_model()(context, LENGTH, candidates).views
    assert views is not None
    weights, spoken = views.weights, views.available.any(dim=-1)
    sums = weights.sum(dim=-1)
    return bool(
        weights.shape[-1] == 2
        and (weights >= 0).all()
        and torch.allclose(sums[spoken], torch.ones(()))
        and (sums[~spoken] == 0).all()
    )


def gate_controls_the_experts() -> bool:
    """The gate controls how strongly the experts speak: the scores are linear in it, and it learns."""
    context, candidates = small_batch()
    model = small_model()
    assert model.gate is not None
    scores = []
    for gate in (0.0, 0.3, 0.6):
        with torch.no_grad():
            model.gate.value.fill_(gate)
        scores.append(model(context, LENGTH, candidates).scores)
    scores[-1].logsumexp(dim=-1).mean().backward()
    gradient = model.gate.value.grad
    linear = torch.allclose(scores[2] - scores[0], 2 * (scores[1] - scores[0]), atol=1e-5)
    return linear and gradient is not None and bool(gradient.abs() > 0)


def fusion_is_residual() -> bool:
    """The fusion is final = LN(seq) + g * sum_m w_m * LN(view_m), here built for every position and candidate."""
    context, candidates = small_batch()
    model = small_model()
    assert model.gate is not None
    states, vectors = model.states(context[:, -LENGTH:]), model.items(candidates)
    memory = model.memory(context, LENGTH)
    said = model.expert_views(candidates, model.item_side(candidates), memory, {})
    expected = torch.zeros(2, LENGTH, candidates.shape[1])
    for user, position in product(range(2), range(LENGTH)):
        first, second = (view[user, memory.segment[user, position]] for view in said.views)  # [N, D]
        weights = said.weights[user, memory.segment[user, position]].unsqueeze(-1)
        auxiliary = weights[:, 0] * first + weights[:, 1] * second
        final = states[user, position] + model.gate.value * auxiliary
        expected[user, position] = (final * vectors[user]).sum(dim=-1)
    return torch.allclose(model(context, LENGTH, candidates).scores, expected, atol=1e-5)


def balance_is_towards_one_half() -> bool:
    """The load-balance loss pulls each expert to its part: two at .9 and .1 cost .4^2 + .4^2 = .32, at 1/2 nothing."""
    weights = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).view(1, 1, 2, 2)
    both = torch.ones_like(weights, dtype=torch.bool)
    uneven, even = load_balance_loss(weights, both), load_balance_loss(torch.full_like(weights, 0.5), both)
    return abs(float(uneven) - 0.32) < 1e-6 and float(even) == 0.0


CHECKS: tuple[Callable[[], bool], ...] = (
    backbone_is_preserved,
    router_weighs_two_experts,
    gate_controls_the_experts,
    fusion_is_residual,
    balance_is_towards_one_half,
)
FACTS = {str(check.__doc__): check for check in CHECKS}


def main() -> int:
    """Check and print every fact; return 1 if one does not hold."""
    holds = {fact: check() for fact, check in FACTS.items()}
    for number, (fact, true) in enumerate(holds.items(), start=1):
        print(f"{'holds' if true else 'FAILS'}  {number}. {fact}")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
