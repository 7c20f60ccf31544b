"""Train the model of a federated run centrally: the same loss and evaluator, shuffled batches of all users' windows."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.runs import ranks_of
from data.dataset import Dataset
from data.sampling import Split, generator, packed_windows, training_part
from fedmoe.settings import Settings
from fedmoe_client.learning.evaluation import catalogue_scorer, mean_metrics
from fedmoe_client.learning.training import with_earlier_items
from model.build import build_model
from model.losses import WindowBatch, objective
from model.residual_moe import ResidualMoE

Items = NDArray[np.int32]


@dataclass(frozen=True)
class CentralPlan:
    """epochs: passes over all windows; batch_size: windows of a step; learning_rate: Adam's, decaying with a cosine;
    evaluate_every: epochs between validations, the best of which is tested."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 2e-3
    evaluate_every: int = 4


def passes(settings: Settings) -> int:
    """Return how often each user takes part in the planned rounds, at least once; it may train a few windows then."""
    federation = settings.federation
    return max(1, round(federation.num_rounds * federation.client_fraction * settings.training.local_epochs))


def train_centrally(
    settings: Settings,
    dataset: Dataset,
    plan: CentralPlan,
    progress: Callable[[str], None] = lambda line: None,
    change: Callable[[ResidualMoE], None] = lambda model: None,
) -> tuple[ResidualMoE, dict[str, dict[str, float]]]:
    """Return the model of the best validation epoch by NDCG@10, and its metrics on validation and test.

    change: what an experiment does to the new model before it is trained.
    """
    model = build_model(settings, dataset)
    change(model)
    torch.manual_seed(settings.seed)

    def metrics(split: Split) -> dict[str, float]:
        return mean_metrics(ranks_of(catalogue_scorer(model), settings, dataset, split), settings.evaluation.cutoffs)

    windows, users, excluded = _all_windows(settings, dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.learning_rate)
    steps = plan.epochs * -(-len(users) // plan.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + cos(pi * min(step / steps, 1.0))))
    best, best_state = -1.0, deepcopy(model.state_dict())
    for epoch in range(1, plan.epochs + 1):
        model.train()
        losses = []
        rng = generator(settings.seed, "central", epoch)
        order = rng.permutation(len(users))
        for chosen in np.split(order, range(plan.batch_size, len(order), plan.batch_size)):
            negatives = _negatives(rng, settings, dataset, [excluded[user] for user in users[chosen]])
            optimizer.zero_grad()
            batch = WindowBatch(windows.context[chosen], windows.targets[chosen], negatives)
            losses_of_batch, _ = objective(model, batch, settings.training)
            losses_of_batch.total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.training.clip_norm or torch.inf)
            optimizer.step()
            schedule.step()
            losses.append(float(losses_of_batch.ranking.detach()))
        if epoch % plan.evaluate_every == 0 or epoch == plan.epochs:
            found = metrics("validation")
            figures = f"HR@10 {found['hr@10']:.4f}  NDCG@10 {found['ndcg@10']:.4f}"
            progress(f"epoch {epoch}/{plan.epochs}  loss {np.mean(losses):.4f}  {figures}")
            if found["ndcg@10"] > best:
                best, best_state = found["ndcg@10"], deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return model, {"validation": metrics("validation"), "test": metrics("test")}


def _all_windows(settings: Settings, dataset: Dataset) -> tuple[WindowBatch, NDArray[np.int64], list[Items]]:
    """Return the windows of all users, without negatives; whose each is; and what is no negative of each user."""
    contexts, targets, users, excluded = [], [], [], []
    earlier = settings.model.memory_size if settings.model.mixture else 0
    for user in range(dataset.interactions.num_users):
        items = training_part(dataset.interactions.history(user))
        windows = packed_windows(items, settings.model.max_seq_len)
        contexts.append(with_earlier_items(windows, items, earlier))
        targets.append(windows.targets)
        users.append(np.full(len(windows), user))
        excluded.append(dataset.negatives.excluded(items))
    context, target = (torch.from_numpy(np.concatenate(parts).astype(np.int64)) for parts in (contexts, targets))
    return WindowBatch(context, target, None), np.concatenate(users), excluded


def _negatives(rng: np.random.Generator, settings: Settings, dataset: Dataset, excluded: list[Items]) -> Tensor | None:
    """Return the negatives ``[B, n]`` of a batch, of whose windows these items are no negatives."""
    if settings.training.loss == "softmax":
        return None
    count, negatives = settings.training.num_negatives, dataset.negatives
    return torch.from_numpy(np.stack([negatives.draw(rng, each, count) for each in excluded]).astype(np.int64))
