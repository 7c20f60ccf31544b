"""What is asked of a ranking loss of one's own, each demand a function that tries it out.

Shapes: B windows, L positions, n negatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedmoe.check.command import Broken, Demands, Finding, findings, in_words
from fedmoe.errors import FedMoEError, nearest
from fedmoe.settings import TrainingSettings
from model.check.small import chance, far
from model.losses import LOSSES, ranking_loss

OURS = ("sampled_softmax", "softmax", "bpr", "gbce")
ITEMS = 61


@dataclass(frozen=True)
class Case:
    """A batch's scores: positive ``[B, L]``, negative ``[B, L, n]``, valid bool ``[B, L]``; items: of the catalogue."""

    positive: Tensor
    negative: Tensor
    valid: Tensor
    items: int = ITEMS


def a_case(seed: int = 0, scale: float = 1.0) -> Case:
    """Return scores of two windows, the second of a short history."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = (scale * torch.randn(shape, generator=generator) for shape in ((2, 5), (2, 5, 6)))
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1, :3] = False
    return Case(positive, negative, valid)


@dataclass(frozen=True)
class Subject:
    """training: the settings that name the loss."""

    training: TrainingSettings

    def of(self, case: Case) -> Tensor:
        """Return the loss of a batch."""
        return ranking_loss(case.positive, case.negative, case.valid, case.items, self.training)

    def gradients(self, case: Case) -> tuple[Tensor, Tensor]:
        """Return the gradients for the positives and the negatives."""
        positive, negative = case.positive.clone().requires_grad_(), case.negative.clone().requires_grad_()
        loss = self.of(replace(case, positive=positive, negative=negative))
        if not loss.requires_grad:
            raise Broken("the loss has no gradient: compute it from the scores with torch, without detach")
        found = torch.autograd.grad(loss, (positive, negative), allow_unused=True, materialize_grads=True)
        return found[0], found[1]


def loss_findings(name: str, parameters: Mapping[str, Any]) -> list[Finding]:
    """Try all demands. FedMoEError: the loss cannot be made."""
    if ":" in name:
        LOSSES.build(name, parameters)
    elif name not in OURS:
        one_of = f"use one of {', '.join(OURS)}, or package.module:Class for one's own"
        raise FedMoEError(f"training.loss '{name}' is not known{nearest(name, OURS)}; {one_of}")
    elif parameters:
        raise FedMoEError(f"training.loss_parameters are not for {name}")
    plain = TrainingSettings()
    return findings(FIRST, THEN, Subject(plain.model_copy(update={"loss": name, "loss_parameters": dict(parameters)})))


def _scalar(subject: Subject) -> str:
    found = subject.of(a_case())
    if not isinstance(found, Tensor):
        raise Broken(f"the loss is a {type(found).__name__}: return a tensor")
    if found.dim():
        raise Broken(f"the loss has the shape {list(found.shape)}: return the mean over the valid positions, a scalar")
    return f"{found.item():.3g} for scores drawn at random"


def _finite(subject: Subject) -> str:
    for scale in (0.0, 1.0, 60.0):
        case = a_case(scale=scale)
        if not all(bool(each.isfinite().all()) for each in (subject.of(case), *subject.gradients(case))):
            raise Broken(
                f"loss or gradient is not finite for scores of about {scale:g}: use logsigmoid, softplus or logsumexp"
            )
    return "for scores up to about 60"


def _positive(subject: Subject) -> str:
    for seed in range(5):
        case = a_case(seed)
        before, after = subject.of(case), subject.of(replace(case, positive=case.positive + 0.5))
        if not float(after) < float(before):
            raise Broken(
                f"from {float(before):.3g} to {float(after):.3g} where the positives' scores rise by 0.5: it must fall"
            )
        if float(subject.gradients(case)[0].max()) > 1e-6:
            raise Broken("the gradient of a positive's score is above 0: its score would be lowered")
    return "falls where their scores rise"


def _negative(subject: Subject) -> str:
    pushed = [float(subject.gradients(a_case(seed))[1].sum()) for seed in range(5)]
    if min(pushed) <= 0.0:
        raise Broken("the gradient of the negatives' scores, summed up, is not above 0: they would be raised")
    return "their scores are lowered"


def _uncounted(subject: Subject) -> str:
    case = a_case()
    nothing = torch.full_like(case.negative, -torch.inf)
    both = replace(case, negative=torch.cat([case.negative, nothing], dim=-1))
    found, gradients = subject.of(both), subject.gradients(both)
    hint = "put 0 in their place and leave them out of sums (torch.where with negative.isfinite())"
    if not all(bool(each.isfinite().all()) for each in (found, *gradients)):
        raise Broken(f"loss or gradient is not finite beside a negative of -inf, which must not count: {hint}")
    # A loss may go by the share of the catalogue that was drawn: either the catalogue or its share stays the same.
    same_share = replace(both, items=2 * (case.items - 1) + 1)
    if far(found, subject.of(case)) and far(subject.of(same_share), subject.of(case)):
        raise Broken(
            f"negatives of -inf change the loss from {float(subject.of(case)):.3g} to {float(found):.3g}: {hint}"
        )
    return "those of -inf change nothing"


def _invalid(subject: Subject) -> str:
    case = a_case()
    others = a_case(seed=9, scale=5.0)
    positive = torch.where(case.valid, case.positive, others.positive)
    negative = torch.where(case.valid.unsqueeze(-1), case.negative, others.negative)
    hint = "return model.losses.mean_of_valid(values, valid)"
    if far(subject.of(case), subject.of(replace(case, positive=positive, negative=negative))):
        raise Broken(f"scores at positions that are not valid change the loss: {hint}")
    kept = slice(3, None)  # in the second window all others are not valid
    second = Case(case.positive[1:], case.negative[1:], case.valid[1:])
    cut = Case(second.positive[:, kept], second.negative[:, kept], second.valid[:, kept])
    if far(subject.of(second), subject.of(cut)):
        raise Broken(f"the loss changes with the number of positions that are not valid: {hint}")
    return "change nothing"


def _mean(subject: Subject) -> str:
    case = a_case()
    positive, negative, valid = (torch.cat([each, each]) for each in (case.positive, case.negative, case.valid))
    twice = Case(positive, negative, valid)
    if far(subject.of(case), subject.of(twice)):
        raise Broken(
            f"{float(subject.of(case)):.3g} for a batch and {float(subject.of(twice)):.3g} for the same batch twice: "
            "return the mean over the valid positions, not their sum"
        )
    return "the same batch twice is as good as once"


def _chance(subject: Subject) -> str:
    found = []
    for number in (0, 1):
        with chance(0, number):
            found.append(subject.of(a_case()))
    if not torch.equal(*found):
        raise Broken("the loss depends on np.random or random: draw with torch, whose generator is seeded")
    return "the loss follows from the scores"


def _stack(subject: Subject) -> str:
    if subject.training.loss == "softmax":
        return "one by one on engine vectorized: it runs over the whole catalogue"
    cases = [a_case(seed) for seed in range(3)]
    each = [torch.stack([getattr(case, name) for case in cases]) for name in ("positive", "negative", "valid")]
    try:
        found = vmap(lambda *scores: subject.of(Case(*scores)), randomness="different")(*each)
    except Exception as error:
        return f"one by one on engine vectorized, since vmap fails: {in_words(error)}"
    if by := far(torch.stack([subject.of(case) for case in cases]), found):
        raise Broken(f"mapped over the clients of a stack (torch.func.vmap) the loss differs by {by:.3g}")
    return "in stacks on engine vectorized, with the same result"


FIRST: Demands[Subject] = {"a scalar": _scalar, "finite": _finite}
THEN: Demands[Subject] = {
    "positives": _positive,
    "negatives": _negative,
    "negatives of -inf": _uncounted,
    "positions that are not valid": _invalid,
    "a mean over positions": _mean,
    "chance is the run's own": _chance,
    "stacked or alone": _stack,
}
