"""What a batch of windows asks of the model: a ranking loss, the router's load-balance loss, and a report.

``window_scores`` runs the model. ``losses_of`` and ``step_report`` are plain arithmetic on what it returns: of one
client or, with one more dimension in front, of all clients of a stack; what is a scalar of one is then ``[C]``.

Shapes: positive ``[B, L]``, negative ``[B, L, n]`` (-inf where a negative must not count), valid bool ``[B, L]``.
A ranking loss is the mean over the valid positions, a scalar.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fedmoe.components import Kind
from fedmoe.settings import TrainingSettings
from model.residual_moe import ResidualMoE
from model.values import Scored

_CANDIDATES = (-4, -3, -2)  # dimensions of weights [B, M, N, E]: windows, segments, candidates


@dataclass(frozen=True)
class WindowBatch:
    """context ``[B, P + L]``: earlier items, then the inputs; targets ``[B, L]``; negatives ``[B, n]``, or None where
    the loss runs over the whole catalogue. Item ids, 0 = padding, all on one device."""

    context: Tensor
    targets: Tensor
    negatives: Tensor | None


def joined(batches: Sequence[WindowBatch]) -> WindowBatch:
    """Return several batches as one, as wide as the widest, with padding on the left."""
    negatives = [batch.negatives for batch in batches if batch.negatives is not None]
    context, targets = (_padded([getattr(batch, name) for batch in batches]) for name in ("context", "targets"))
    return WindowBatch(context, targets, torch.cat(negatives) if negatives else None)


def _padded(ids: Sequence[Tensor]) -> Tensor:
    width = max(each.shape[1] for each in ids)
    return torch.cat([functional.pad(each, (width - each.shape[1], 0)) for each in ids])


class Model(Protocol):
    """Scores candidates at every position of a window: ``ResidualMoE``, or its stacked form."""

    def __call__(self, context: Tensor, length: int, candidates: Tensor) -> Scored:
        """See ``ResidualMoE.forward``."""


class WindowScores(NamedTuple):
    """Of B windows: positive ``[B, L]``, negative ``[B, L, n]``, valid bool ``[B, L]``, and of the experts, where
    there are any, weights and available ``[B, M, N, E]`` and power ``[B, E]`` (see ``model.residual_moe.Views``)."""

    positive: Tensor
    negative: Tensor
    valid: Tensor
    weights: Tensor | None = None
    available: Tensor | None = None
    power: Tensor | None = None

    def by_client(self, clients: int) -> WindowScores:
        """Return ``[B, ...]`` as ``[C, W, ...]``."""
        return self.map(lambda tensor: tensor.view(clients, -1, *tensor.shape[1:]))

    def map(self, change: Callable[[Tensor], Tensor]) -> WindowScores:
        """Apply a function to every tensor."""
        return WindowScores(*(change(tensor) for tensor in self.tensors()))

    def tensors(self) -> list[Tensor]:
        """Return those that there are; ``WindowScores(*tensors)`` puts them together again."""
        return [tensor for tensor in self if tensor is not None]


class Losses(NamedTuple):
    """Scalars of one client: total = ranking + balance_weight * balance."""

    total: Tensor
    ranking: Tensor
    balance: Tensor


def objective(model: ResidualMoE, batch: WindowBatch, training: TrainingSettings) -> tuple[Losses, WindowScores]:
    """Return the losses of one client's batch, and the scores that they come from."""
    scores = window_scores(model, batch, model.num_items, training.precision)
    return losses_of(scores, model.num_items, training), scores


def window_scores(
    model: Model, batch: WindowBatch, num_items: int, precision: Literal["float32", "bfloat16"]
) -> WindowScores:
    """Run the model on a batch. With bfloat16, its matrix products are taken in that type (torch's autocast)."""
    with torch.autocast(batch.context.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        scores = _scores_of(model, batch, num_items)
    if precision == "float32":
        return scores
    return scores.map(lambda each: each.float() if each.is_floating_point() else each)


def _scores_of(model: Model, batch: WindowBatch, num_items: int) -> WindowScores:
    length = batch.targets.shape[1]
    if batch.negatives is None:
        catalogue = torch.arange(1, num_items + 1, device=batch.targets.device)
        scored = model(batch.context, length, catalogue.expand(len(batch.targets), -1))
        column = (batch.targets - 1).clamp_min(0).unsqueeze(-1)
        positive = scored.scores.gather(2, column).squeeze(-1)
        negative = scored.scores.scatter(2, column, -torch.inf)  # the target is no negative of itself
    else:
        scored = model(batch.context, length, torch.cat([batch.targets, batch.negatives], dim=1))
        positive = scored.scores[:, :, :length].diagonal(dim1=1, dim2=2)
        negative = scored.scores[:, :, length:]
    views = scored.views
    said = () if views is None else (views.weights, views.available, views.power)
    return WindowScores(positive, negative, batch.targets > 0, *said)


def losses_of(scores: WindowScores, num_items: int, training: TrainingSettings) -> Losses:
    """Return the losses of one client's windows."""
    ranking = ranking_loss(scores.positive, scores.negative, scores.valid, num_items, training)
    balance = torch.zeros_like(ranking)
    if scores.weights is not None and scores.available is not None and scores.weights.shape[-1] > 1:
        balance = load_balance_loss(scores.weights, scores.available)
    return Losses(ranking + training.balance_weight * balance, ranking, balance)


class RankingLoss(ABC):
    """A loss of one's own over the positive and the sampled negatives. Its constructor takes ``loss_parameters``.

    It is mapped over the clients of a stack (``torch.func.vmap``), so nothing in it may branch on a value of a tensor.
    """

    @abstractmethod
    def __call__(self, positive: Tensor, negative: Tensor, valid: Tensor, num_items: int) -> Tensor:
        """Return the mean over the valid positions: see the module for the shapes."""


LOSSES: Kind[RankingLoss] = Kind("training.loss", "training.loss_parameters", RankingLoss, {})  # type: ignore[type-abstract]


@lru_cache(maxsize=8)
def own_loss(name: str, parameters: str) -> RankingLoss:
    """Return the loss ``package.module:Class`` with its arguments, given as JSON. FedMoEError: it cannot be made."""
    return LOSSES.build(name, json.loads(parameters))


def ranking_loss(
    positive: Tensor, negative: Tensor, valid: Tensor, num_items: int, training: TrainingSettings
) -> Tensor:
    """Return the loss that the settings name."""
    if ":" in training.loss:
        own = own_loss(training.loss, json.dumps(training.loss_parameters))
        if positive.dim() > 2:
            from torch.func import vmap  # takes its time, and hardly anybody needs it

            mapped: Tensor = vmap(lambda *each: own(*each, num_items))(positive, negative, valid)  # type: ignore[call-arg]
            return mapped
        return own(positive, negative, valid, num_items)
    if training.loss == "bpr":
        return bpr_loss(positive, negative, valid)
    if training.loss == "gbce":
        return gbce_loss(positive, negative, valid, num_items, training.gbce_calibration)
    return softmax_loss(positive, negative, valid)


def softmax_loss(positive: Tensor, negative: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of the positive against the negatives: sampled, or the whole catalogue.

    Klenitskiy & Vasilev, "Turning dross into gold loss: is BERT4Rec really better than SASRec?", RecSys 2023.
    """
    others = negative.logsumexp(dim=-1)
    return mean_of_valid(functional.softplus(others - positive), valid)


def bpr_loss(positive: Tensor, negative: Tensor, valid: Tensor) -> Tensor:
    """Bayesian personalised ranking, the mean over the negatives (Rendle et al., UAI 2009)."""
    counted = negative.isfinite()
    margin = functional.softplus(torch.where(counted, negative, positive.unsqueeze(-1)) - positive.unsqueeze(-1))
    return mean_of_valid((margin * counted).sum(dim=-1) / counted.sum(dim=-1).clamp_min(1), valid)


def gbce_loss(positive: Tensor, negative: Tensor, valid: Tensor, num_items: int, calibration: float) -> Tensor:
    """Generalised binary cross-entropy of gSASRec (Petrov & Macdonald, RecSys 2023), calibration t in [0, 1].

    With sampling rate a = n / (V - 1), the positive's probability is raised to beta = a * (t * (1 - 1/a) + 1/a).
    """
    rate = negative.shape[-1] / max(num_items - 1, 1)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    counted = negative.isfinite()
    against = functional.softplus(torch.where(counted, negative, torch.zeros_like(negative))) * counted
    return mean_of_valid(beta * functional.softplus(-positive) + against.sum(dim=-1), valid)


def mean_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of values ``[B, L]`` over the valid positions."""
    return (values * valid).sum(dim=(-2, -1)) / valid.sum(dim=(-2, -1)).clamp_min(1)


def load_balance_loss(weights: Tensor, available: Tensor) -> Tensor:
    """Return ``sum_e (mean weight of e - 1/E)^2`` over the candidates that every expert has a view of.

    weights ``[B, M, N, E]``, available bool ``[B, M, N, E]``. Zero where the router had no choice to make.
    """
    experts = weights.shape[-1]
    chosen = available.all(dim=-1, keepdim=True)
    count = chosen.sum(dim=_CANDIDATES)  # [1]
    mean = (weights * chosen).sum(dim=_CANDIDATES) / count.clamp_min(1)
    return (mean - 1.0 / experts).square().sum(dim=-1) * (count[..., 0] > 0)


def step_report(scores: WindowScores, losses: Losses, experts: Sequence[str], competes: bool) -> dict[str, Tensor]:
    """Return what the router and the experts did in a step, beside its loss: scalars by name.

    The names depend on the model alone, so that all clients report the same.

    scores, losses: of one client's windows, detached. experts: names of the model's experts; competes: whether the
    backbone has a share of the router's weights.
    """
    numbers = {"loss": losses.ranking}
    if scores.weights is None or scores.available is None or scores.power is None:
        return numbers
    numbers["balance-loss"] = losses.balance
    names = ["sequence"] * competes + list(experts)
    spoken = scores.available[..., int(competes) :].any(dim=-1)  # [W, M, N]
    count = spoken.sum(dim=(-3, -2, -1))
    # A user whose items lack every modality chose nothing, which counts as an even choice.
    sums = (scores.weights * spoken.unsqueeze(-1)).sum(dim=_CANDIDATES)
    for name, total in zip(names, sums.unbind(dim=-1), strict=True):
        numbers[f"router-{name}"] = torch.where(count > 0, total / count.clamp_min(1), 1 / len(names))
    for name, power in zip(experts, scores.power.mean(dim=-2).unbind(dim=-1), strict=True):
        numbers[f"view-{name}"] = power.sqrt()
    if len(names) > 1:  # 1: an even choice, 0: always the same expert
        entropies = torch.special.entr(scores.weights).sum(dim=-1) * spoken
        entropy = entropies.sum(dim=(-3, -2, -1)) / count.clamp_min(1) / log(len(names))
        numbers["router-entropy"] = torch.where(count > 0, entropy, 1.0)
    return numbers
