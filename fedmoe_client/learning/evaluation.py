"""The one evaluator: the rank of the held-out item, for clients, central runs and popularity alike.

The item is ranked among the whole catalogue without the items met (``full``), or among itself and a fixed sample of
items not met (``sampled``). Where the user has met the held-out item before, all items met are candidates like it: as
the only one of them it would be found by anybody who looks for an item met. The figures of the two protocols must never
be compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.sampling import Interactions, Split, evaluation_candidates, held_out
from fedmoe.metrics import Metric, own_metrics
from fedmoe.settings import EvaluationSettings, Settings
from model.residual_moe import ResidualMoE
from model.values import ItemSide, Reading

NONE: Mapping[str, Metric] = {}
Scorer = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""Scores ``[B, N]`` of candidates ``[B, N]`` as what follows the contexts ``[B, C]`` (left-padded with 0)."""

Reader = Callable[[Tensor], Reading]
"""Returns ``ResidualMoE.read`` of contexts and the scorer's catalogue, perhaps as it was read before."""

Part = tuple[NDArray[np.int32], int]
"""A user's context, every item met before the held-out one, and the held-out item."""


class Histories(Protocol):
    """Users' histories: a data set's ``Interactions``, or those that a client has of its own."""

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""

    def history(self, user: int) -> NDArray[np.int32]:
        """Return a user's items, oldest first."""


def ranks(
    scorer: Scorer,
    interactions: Histories,
    users: Sequence[int] | NDArray[np.int64],
    split: Split,
    evaluation: EvaluationSettings,
    seed: int,
    context_length: int,
    batch_size: int = 32,
) -> NDArray[np.float64]:
    """Return the rank, from 1, of each user's held-out item; a tie counts as half lost.

    Raises ValueError if a score is not a number.
    """
    found = []
    for start in range(0, len(users), batch_size):
        chunk = [int(user) for user in users[start : start + batch_size]]
        parts = [held_out(interactions.history(user), split) for user in chunk]
        candidates, counted, places = _candidates(chunk, parts, interactions, evaluation, seed)
        found.append(rank_of(scores_of(scorer, chunk, parts, candidates, context_length), counted, places))
    return np.concatenate(found) if found else np.zeros(0)


def scores_of(
    scorer: Scorer, users: Sequence[int], parts: Sequence[Part], candidates: NDArray[np.int64], context_length: int
) -> NDArray[np.float32]:
    """Return the scores ``[B, N]`` of candidates ``[B, N]`` after the last items of the users' contexts.

    Raises ValueError if a score is not a number.
    """
    length = min(context_length, max(len(context) for context, _ in parts))  # beyond it all is padding
    scores = scorer(np.stack([_last(context, length) for context, _ in parts]), candidates)
    if np.isnan(scores).any():
        user = users[int(np.isnan(scores).any(axis=1).argmax())]
        raise ValueError(f"the model gives user {user} a score that is not a number")
    return scores


def client_metrics(
    scorer: Scorer, histories: Histories, users: Sequence[int], split: Split, settings: Settings
) -> dict[str, float]:
    """Return the mean ``rank`` and the mean metrics of a client's users."""
    reach = max(settings.model.max_seq_len, settings.model.memory_size)
    found = ranks(scorer, histories, users, split, settings.evaluation, settings.seed, reach)
    cutoffs, own = settings.evaluation.cutoffs, own_metrics(settings.evaluation)
    means = metrics_of(float(found[0]), cutoffs, own) if len(found) == 1 else mean_metrics(found, cutoffs, own)
    return {"rank": float(found.mean()), **means}


def rank_of(scores: NDArray[np.float32], counted: NDArray[np.bool_], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the rank ``[B]`` of the held-out items in the columns ``places`` ``[B]`` of scores ``[B, N]``.

    counted: bool ``[B, N]``, the candidates beside them.
    """
    target = np.take_along_axis(scores, places[:, None], axis=1)
    above = ((scores > target) & counted).sum(axis=1)
    tied = ((scores == target) & counted).sum(axis=1)
    found: NDArray[np.float64] = 1.0 + above + 0.5 * tied
    return found


def metrics_of(rank: float, cutoffs: Iterable[int], own: Mapping[str, Metric] = NONE) -> dict[str, float]:
    """Return HR@K and NDCG@K of one held-out item, for the cutoffs and for K = 10, and the user's own metrics."""
    found = {name: float(metric.of(rank)) for name, metric in own.items()}
    for cutoff in sorted({10, *cutoffs}):
        hit = rank <= cutoff
        found[f"hr@{cutoff}"] = float(hit)
        found[f"ndcg@{cutoff}"] = float(1.0 / np.log2(1.0 + rank)) if hit else 0.0
    return found


def mean_metrics(
    all_ranks: NDArray[np.float64], cutoffs: Iterable[int], own: Mapping[str, Metric] = NONE
) -> dict[str, float]:
    """Return the means over users of ``metrics_of``."""
    each = [metrics_of(float(rank), cutoffs, own) for rank in all_ranks]
    return {name: float(np.mean([numbers[name] for numbers in each])) for name in each[0]}


def catalogue_side(model: ResidualMoE) -> ItemSide:
    """Return what a model makes of the items 0 to V, which all users' rankings of the whole catalogue share."""
    model.eval()
    with torch.inference_mode():
        return model.item_side(torch.arange(model.num_items + 1, device=next(model.parameters()).device))


def model_scorer(model: ResidualMoE, catalogue: ItemSide | None = None, reader: Reader | None = None) -> Scorer:
    """Return the scorer of a model, in evaluation mode and without gradients.

    catalogue: see ``catalogue_side``; it and reader are of use where the candidates are the items 0 to V in this order.
    """
    device, everything = next(model.parameters()).device, np.arange(model.num_items + 1)

    def scores(contexts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        model.eval()
        given = torch.from_numpy(contexts).to(device)
        with torch.inference_mode():
            if catalogue is not None and all(np.array_equal(row, everything) for row in candidates):
                found = model.rank_catalogue(given, catalogue, None if reader is None else reader(given))
            else:
                found = model.rank_scores(given, torch.tensor(candidates, device=device))
        array: NDArray[np.float32] = found.cpu().numpy()
        return array

    return scores


def catalogue_scorer(model: ResidualMoE) -> Scorer:
    """Return the scorer of a model that stays as it is while many users' catalogues are ranked."""
    return model_scorer(model, catalogue_side(model))


def popularity_scorer(interactions: Interactions) -> Scorer:
    """Return the scorer that ranks by the number of times an item occurs in the users' training parts."""
    ends = interactions.offsets[1:]
    items, catalogue = interactions.items, interactions.num_items + 1
    held_back = np.concatenate([items[ends - 1], items[ends - 2]])
    found = np.bincount(items, minlength=catalogue) - np.bincount(held_back, minlength=catalogue)
    counts = found.astype(np.float32)
    return lambda contexts, candidates: counts[candidates]


def _candidates(
    users: list[int],
    parts: list[Part],
    interactions: Histories,
    evaluation: EvaluationSettings,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return candidates ``[B, N]``, which of them count beside the held-out item, and where that one stands."""
    if evaluation.protocol == "full":
        return catalogue_candidates(parts, interactions.num_items)
    size = evaluation.num_candidates
    drawn = [
        evaluation_candidates(seed, user, interactions.num_items, _hidden(interactions.history(user), *part), size)
        for user, part in zip(users, parts, strict=True)
    ]
    targets = np.array([target for _, target in parts], np.int64)
    candidates = np.concatenate([targets[:, None], np.stack(drawn).astype(np.int64)], axis=1)
    counted = np.ones_like(candidates, bool)
    counted[:, 0] = False
    return candidates, counted, np.zeros_like(targets)


def catalogue_candidates(
    parts: Sequence[Part], num_items: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return candidates ``[B, V + 1]``, so that item i's column is i, which of them count, and the held-out items.

    Neither the padding counts, nor what the user has met, nor the held-out item itself.
    """
    candidates = np.broadcast_to(np.arange(num_items + 1), (len(parts), num_items + 1))
    counted = np.ones(candidates.shape, bool)
    counted[:, 0] = False
    for row, (context, target) in enumerate(parts):
        counted[row, _hidden(context, context, target)] = False
    return candidates, counted, np.array([target for _, target in parts], np.int64)


def _hidden(met: NDArray[np.int32], context: NDArray[np.int32], target: int) -> NDArray[np.int32]:
    """Return the items that are no candidates beside the target: those met, unless it is one of the context's."""
    return np.array([target], np.int32) if (context == target).any() else np.append(met, np.int32(target))


def _last(context: NDArray[np.int32], length: int) -> NDArray[np.int64]:
    recent = context[-length:]
    return np.concatenate([np.zeros(length - len(recent), np.int64), recent.astype(np.int64)])


def split_metrics(
    scorer: Scorer, interactions: Interactions, evaluation: EvaluationSettings, seed: int, context_length: int
) -> dict[str, dict[str, float]]:
    """Return the means over all users on validation and test."""
    users = np.arange(interactions.num_users)
    return {
        split: mean_metrics(
            ranks(scorer, interactions, users, split, evaluation, seed, context_length),
            evaluation.cutoffs,
            own_metrics(evaluation),
        )
        for split in ("validation", "test")
    }


def popularity_metrics(
    interactions: Interactions, evaluation: EvaluationSettings, seed: int
) -> dict[str, dict[str, float]]:
    """Return what ranking by popularity reaches: a model below it has a defect."""
    return split_metrics(popularity_scorer(interactions), interactions, evaluation, seed, context_length=1)
