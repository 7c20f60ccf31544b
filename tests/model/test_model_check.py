"""Each planted defect of an expert, a backbone and a loss is found by its demand; what ships has none."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.settings import ModelSettings
from model.check import backbone, expert, loss
from model.check.__main__ import KINDS, main
from model.experts import Expert, Memory, attend, usable_memory
from model.losses import RankingLoss, bpr_loss, mean_of_valid
from model.sasrec import Backbone, FixedFeatures


class Good(Expert):
    """The mean of the memory; a base whose subclasses have one defect."""

    def __init__(self, features: FixedFeatures, settings: ModelSettings) -> None:
        super().__init__(features)
        self.output = nn.Linear(settings.dim, settings.dim)

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        return torch.zeros_like(vectors[..., :1])

    def usable(self, candidates: Tensor, memory: Memory) -> Tensor:
        return usable_memory(candidates, memory, self.features.present)

    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        usable = self.usable(candidates, memory)
        mean, where = attend(queries, torch.zeros_like(vectors[..., :1]), vectors, usable, memory, heads=1)
        return self.said(mean), where

    def said(self, mean: Tensor) -> Tensor:
        return self.output(mean)  # type: ignore[no-any-return]


class OneQueryForAll(Good):
    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        return torch.zeros(1)


class DividesByCount(Good):
    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        view, where = super().forward(candidates, queries, memory, vectors)
        return view / where.unsqueeze(-1), where


class ViewsOfAll(Good):
    """Asks only whether the memory's items have the modality."""

    def usable(self, candidates: Tensor, memory: Memory) -> Tensor:
        return (candidates.unsqueeze(1) != memory.items.unsqueeze(2)) & self.features.present[memory.items].unsqueeze(2)


class ReadsItemsWithout(Good):
    def usable(self, candidates: Tensor, memory: Memory) -> Tensor:
        met = (candidates.unsqueeze(1) != memory.items.unsqueeze(2)) & (memory.items > 0).unsqueeze(2)
        return met & self.features.present[candidates].unsqueeze(1)


class CountsPadding(Good):
    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        _, where = super().forward(candidates, queries, memory, vectors)
        sums = memory.visible().to(vectors.dtype) @ (vectors * _reads(self, memory))  # [B, M, D]
        return self.output(sums.unsqueeze(2) * where.unsqueeze(-1)), where


class LooksAtItself(Good):
    def usable(self, candidates: Tensor, memory: Memory) -> Tensor:
        present = self.features.present
        return present[memory.items].unsqueeze(2) & present[candidates].unsqueeze(1)


class SeesTheFuture(Good):
    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        view, where = super().forward(candidates, queries, memory, vectors)
        return view[:, -1:].expand_as(view), where


class ComparesCandidates(Good):
    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        view, where = super().forward(candidates, queries, memory, vectors)
        return view - view.mean(dim=2, keepdim=True), where


class ComparesWindows(Good):
    def said(self, mean: Tensor) -> Tensor:
        return super().said(mean) - mean.mean(dim=0, keepdim=True)


class HasATableOfItsOwn(Good):
    def __init__(self, features: FixedFeatures, settings: ModelSettings) -> None:
        super().__init__(features, settings)
        noise = torch.randn(len(features.values), settings.dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("table", noise, persistent=False)

    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        view, where = super().forward(candidates, queries, memory, vectors)
        return view + self.get_buffer("table")[candidates].unsqueeze(1), where


class Detached(Good):
    def said(self, mean: Tensor) -> Tensor:
        return mean * self.output(mean).detach()


class NumPysStart(Good):
    def __init__(self, features: FixedFeatures, settings: ModelSettings) -> None:
        super().__init__(features, settings)
        with torch.no_grad():
            self.output.weight.copy_(torch.from_numpy(np.random.normal(size=self.output.weight.shape)))


class DropsInEvaluation(Good):
    def said(self, mean: Tensor) -> Tensor:
        return super().said(functional.dropout(mean, 0.5, training=True))


class PythonsNoise(Good):
    def said(self, mean: Tensor) -> Tensor:
        return super().said(mean) + (random.random() if self.training else 0.0)


class MixesAStack(Good):
    """A weight used without its layer: a stack's weights are one more dimension, here that of the first client."""

    def said(self, mean: Tensor) -> Tensor:
        weight = self.output.weight
        return functional.linear(mean, weight if weight.dim() == 2 else weight[0], self.output.bias.reshape(-1, 8)[0])


def _reads(of: Expert, memory: Memory) -> Tensor:
    """Return ``[B, C, 1]``: which items count where padding does too."""
    return (of.features.present[memory.items] | (memory.items == 0)).unsqueeze(-1)


EXPERTS: dict[type[Expert], str] = {
    OneQueryForAll: "shapes and types",
    DividesByCount: "views are finite",
    ViewsOfAll: "items without the modality",
    ReadsItemsWithout: "items without the modality",
    CountsPadding: "padding",
    LooksAtItself: "the candidate itself",
    SeesTheFuture: "time runs forwards",
    ComparesCandidates: "candidates are apart",
    ComparesWindows: "windows are apart",
    HasATableOfItsOwn: "items may be renumbered",
    Detached: "gradients reach all parameters",
    NumPysStart: "chance is the run's own",
    DropsInEvaluation: "chance is the run's own",
    PythonsNoise: "chance is the run's own",
    MixesAStack: "stacked or alone",
}


class Linear(Backbone):
    """Each state is a map of its item; a base whose subclasses have one defect."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.map = nn.Linear(settings.dim, settings.dim)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        return self.map(vectors) * present.unsqueeze(-1)  # type: ignore[no-any-return]


class LastStateOnly(Linear):
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        return super().forward(vectors, present)[:, -1]


class SoftmaxOverNothing(Linear):
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        allowed = present.unsqueeze(1) & torch.ones(present.shape[1], present.shape[1], dtype=torch.bool).tril()
        weights = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf).softmax(dim=-1)
        return weights @ self.map(vectors)  # type: ignore[no-any-return]


class ReadsNothing(Linear):
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        return super().forward(torch.ones_like(vectors), present)


class WithoutCausalMask(Linear):
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        mapped = super().forward(vectors, present)
        return mapped + mapped.sum(dim=1, keepdim=True)


class RunsOverPadding(Linear):
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        return self.map(vectors).cumsum(dim=1)  # type: ignore[no-any-return]


class ComparesBatch(Linear):
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        mapped = super().forward(vectors, present)
        return mapped - mapped.mean(dim=0, keepdim=True)


class HasADeadLayer(Linear):
    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self.dead = nn.Linear(2, 2)


class NoisyBackbone(Linear):
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        return super().forward(vectors, present) + (float(np.random.normal()) if self.training else 0.0)


class UsesItsWeight(Linear):
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        return vectors @ self.map.weight.reshape(-1, 8, 8)[0] + self.map(vectors)  # type: ignore[no-any-return]


BACKBONES: dict[type[Backbone], str] = {
    LastStateOnly: "shapes and types",
    SoftmaxOverNothing: "states are finite",
    ReadsNothing: "items are read",
    WithoutCausalMask: "time runs forwards",
    RunsOverPadding: "padding",
    ComparesBatch: "windows are apart",
    HasADeadLayer: "gradients reach all parameters",
    NoisyBackbone: "chance is the run's own",
    UsesItsWeight: "stacked or alone",
}


class Loss(RankingLoss):
    """Margins from the negatives' mean; a base whose subclasses have one defect."""

    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return bpr_loss(positive, negative, valid)


class NotReduced(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return functional.softplus(-positive) * valid


class Overflows(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        others = negative.exp().square().sum(dim=-1)
        return mean_of_valid((1.0 + others / positive.exp().square()).log(), valid)


class WrongWay(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return bpr_loss(-positive, -negative, valid)


class PositivesAlone(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return mean_of_valid(functional.softplus(-positive), valid)


class SquaresInfinity(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        shares = negative.softmax(dim=-1)
        return bpr_loss(positive, negative, valid) + mean_of_valid((shares * negative.square()).sum(dim=-1), valid)


class MeanOverAllNegatives(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return mean_of_valid(functional.softplus(negative - positive.unsqueeze(-1)).mean(dim=-1), valid)


class MeanOverAllPositions(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return bpr_loss(positive, negative, valid) * valid.float().mean()


class ForgetsValid(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return bpr_loss(positive, negative, torch.ones_like(valid))


class Sum(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return bpr_loss(positive, negative, valid) * valid.sum()


class NoisyLoss(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return bpr_loss(positive, negative, valid) * (1.0 + 0.1 * random.random())


class CountsCalls(Loss):
    """The third call and later ones differ: a stack calls once for all clients."""

    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        mapped = torch._C._functorch.is_batchedtensor(positive)
        return bpr_loss(positive, negative, valid) * (1.5 if mapped else 1.0)


class Branches(Loss):
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        return bpr_loss(positive, negative, valid) if positive.max() < 1e9 else positive.sum()


LOSSES: dict[type[RankingLoss], str] = {
    NotReduced: "a scalar",
    Overflows: "finite",
    WrongWay: "positives",
    PositivesAlone: "negatives",
    SquaresInfinity: "negatives of -inf",
    MeanOverAllNegatives: "negatives of -inf",
    MeanOverAllPositions: "positions that are not valid",
    ForgetsValid: "positions that are not valid",
    Sum: "a mean over positions",
    NoisyLoss: "chance is the run's own",
    CountsCalls: "stacked or alone",
}
DEFECTS: list[tuple[str, type, str]] = [
    (kind, cls, demand)
    for kind, table in (("expert", EXPERTS), ("backbone", BACKBONES), ("loss", LOSSES))
    for cls, demand in table.items()
]
# Where windows of a batch are mixed, those of a stack's clients are too; noise disturbs every comparison.
MORE: dict[type, set[str]] = {
    ComparesWindows: {"stacked or alone"},
    ComparesBatch: {"stacked or alone"},
    HasATableOfItsOwn: {"stacked or alone"},
    WrongWay: {"negatives"},
    OneQueryForAll: {"views are finite"},  # it cannot be asked for views either
    NotReduced: {"finite"},
    CountsPadding: {"the candidate itself"},  # which is tried with padding in its place
    ComparesCandidates: {"the candidate itself"},
}
NOISE = {DropsInEvaluation, NoisyLoss}


@pytest.mark.parametrize(("kind", "defective", "demand"), DEFECTS)
def test_a_defect_is_found_by_its_demand(kind: str, defective: type, demand: str) -> None:
    found = KINDS[kind](f"{__name__}:{defective.__name__}", {})
    failed = {finding.demand for finding in found if finding.holds is False}
    assert demand in failed
    assert defective in NOISE or failed - {demand} <= MORE.get(defective, set())


def test_every_demand_has_a_defect() -> None:
    for module, table in ((expert, EXPERTS), (backbone, BACKBONES), (loss, LOSSES)):
        assert set(table.values()) == {*module.FIRST, *module.THEN}


@pytest.mark.parametrize(
    ("kind", "name", "parameters", "stacked"),
    [
        ("expert", f"{__name__}:Good", {}, "in stacks"),
        ("expert", "matching", {}, "in stacks"),
        ("expert", "feature_attention", {}, "in stacks"),
        ("expert", "item_attention", {}, "in stacks"),
        ("expert", "examples.experts.average:Average", {"decay": 5.0}, "in stacks"),
        ("backbone", f"{__name__}:Linear", {}, "in stacks"),
        ("backbone", "sasrec", {}, "in stacks"),
        ("backbone", "examples.backbones.gru4rec:GRU4Rec", {"layers": 2}, "one by one on engine vectorized: layer"),
        ("loss", f"{__name__}:Loss", {}, "in stacks"),
        ("loss", f"{__name__}:Branches", {}, "one by one on engine vectorized, since vmap fails"),
        ("loss", "sampled_softmax", {}, "in stacks"),
        ("loss", "softmax", {}, "one by one"),
        ("loss", "bpr", {}, "in stacks"),
        ("loss", "gbce", {}, "in stacks"),
        ("loss", "examples.losses.bpr_max:BPRMax", {"penalty": 0.5}, "in stacks"),
    ],
)
def test_what_ships_meets_all_demands(kind: str, name: str, parameters: dict[str, Any], stacked: str) -> None:
    found = KINDS[kind](name, parameters)
    assert [str(finding) for finding in found if not finding.holds] == []
    assert found[-1].seen.startswith(stacked)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loss", "examples.losses.bpr_max:BPRMax", "penalty=0.5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(loss.FIRST) + len(loss.THEN)
    assert main(["backbone", f"{__name__}:LastStateOnly"]) == 1
    said = capsys.readouterr().out
    assert "FAILS: the states have the shape [2, 8], expected [2, 6, 8]" in said and "not tried: see above" in said
    assert main(["--help"]) == 0 and main([]) == 2 and main(["expert"]) == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["exprt", "matching"], "did you mean 'expert'"),
        (["expert", "maching"], "did you mean 'matching'"),
        (["backbone", "examples.backbones.gru4rec:GRU4Rec", "layer=2"], "did you mean 'layers'"),
        (["loss", "brp"], "did you mean 'bpr'"),
        (["loss", "bpr", "penalty=1"], "not for bpr"),
        (["loss", "examples.losses.bpr_max:BPRMax", "penalty=x"], "'penalty' must be a number"),
    ],
)
def test_wrong_words_are_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error and len(error.splitlines()) == 1
