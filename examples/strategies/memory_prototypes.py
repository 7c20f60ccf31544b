r"""Memory prototypes: the memories of cold users are extended by those of all others. Random items do at least as well.

The experts attend over the items that a user has met, and a cold user has met few. Each client computes the centres of
the feature vectors of its memory, and the server makes P prototypes of all clients' centres. Users with short memories
attend over the prototypes besides their own items. For each modality, with the vectors x_i of client u's memory,

    client    c_uj = mean of x_i over S_uj,   S_u1, ..., S_uJ a k-means clustering of the memory
              sent with |S_uj| where |S_uj| >= k; smaller clusters never leave the client
    server    p_1, ..., p_P = argmin  sum_uj |S_uj| min_q ||c_uj - p_q||^2          (weighted k-means)

    python examples/strategies/memory_prototypes.py ml-100k text_file=... visual_file=...

trains a model centrally for each memory and ranks the test items of users cut down to their latest items. The control
has as many random items of the catalogue as there are prototypes. docs/strategies.md has the results.

The rule of k is no guarantee: the catalogue is public, and the mean of five known vectors may give away which five.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.quality.central import CentralPlan, train_centrally
from benchmarks.quality.figures import gain, paired_p
from data.dataset import Dataset
from data.registry import load_dataset
from data.sampling import generator, training_part
from fedmoe.loading import load_settings
from fedmoe.settings import Settings
from fedmoe_client.learning.evaluation import catalogue_scorer, ranks
from model.experts import Expert, Memory
from model.residual_moe import ResidualMoE
from model.sasrec import FixedFeatures

Vectors = NDArray[np.float32]
Items = NDArray[np.int32]
Kind = Literal["own memory only", "prototypes", "random items"]
Centres = tuple[Vectors, NDArray[np.float64]]
"""Centres ``[J, F]`` and the number of items, or weight, of each ``[J]``."""


@dataclass(frozen=True)
class Plan:
    """centres, least: J and k of a client; short: items of a memory to which prototypes are added; sizes: the P to try;
    cuts: latest items that are left to a cold user."""

    epochs: int = 20
    centres: int = 5
    least: int = 5
    short: int = 10
    sizes: tuple[int, ...] = (8, 32)
    cuts: tuple[int, ...] = (3, 5, 10)


def k_means(points: Vectors, weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> Centres:
    """Return at most ``count`` centres of weighted points ``[n, F]``: Lloyd's steps after k-means++ seeding."""
    chosen = [int(rng.choice(len(points), p=weights / weights.sum()))]
    for _ in range(min(count, len(np.unique(points, axis=0))) - 1):
        chance = weights * _distances(points, points[chosen]).min(axis=1)
        chosen.append(int(rng.choice(len(points), p=chance / chance.sum())))
    centres = points[chosen]
    for _ in range(20):
        member = _distances(points, centres).argmin(axis=1)[:, None] == np.arange(len(centres))  # [n, J]
        member = member[:, member.any(axis=0)] * weights[:, None]
        mass = member.sum(axis=0)
        centres = (member.T @ points / mass[:, None]).astype(np.float32)
    return centres, mass


def _distances(points: Vectors, centres: Vectors) -> NDArray[np.float64]:
    """Return the squared distances ``[n, J]``, exactly 0 between equal points."""
    return np.stack([np.square(points - centre, dtype=np.float64).sum(axis=1) for centre in centres], axis=1)


def client_centres(vectors: Vectors, count: int, least: int, rng: np.random.Generator) -> Centres:
    """Return what a client sends of the vectors ``[n, F]`` of its memory: the centres of at least ``least`` items."""
    if len(vectors) < least:
        return vectors[:0], np.zeros(0)
    centres, sizes = k_means(vectors, np.ones(len(vectors)), count, rng)
    return centres[sizes >= least], sizes[sizes >= least]


def aggregate(sent: Sequence[Centres], count: int, rng: np.random.Generator) -> Vectors:
    """Return the prototypes ``[P, F]`` of what the clients sent, in whatever order; P <= count."""
    centres, sizes = (np.concatenate(parts) for parts in zip(*sent, strict=True))
    if len(centres) == 0:
        return centres
    order = np.lexsort([sizes, *centres.T])
    return k_means(centres[order], sizes[order], count, rng)[0]


class ExtendedMemory(Expert):
    """An expert whose memory has slots that the user did not fill, open while it has at most ``short`` items itself.

    The slots ``[P, F]`` are rows of the features beyond the catalogue's V + 1.
    """

    def __init__(self, expert: Expert, slots: Vectors, short: int) -> None:
        features = copy.deepcopy(expert.features)
        super().__init__(features)
        self.expert, self.short = expert, short
        self.first, self.last = len(features.values), len(features.values) + len(slots)
        features.values = torch.cat([features.values, torch.from_numpy(slots)])
        features.present = torch.cat([features.present, torch.ones(len(slots), dtype=torch.bool)])
        expert._features = [features]

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Return what the expert asks."""
        return self.expert.queries(items, vectors)

    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes as in ``model.experts``; each segment becomes a window of its own, with K + P items."""
        own = memory.items.unfold(1, memory.blocks * memory.block, memory.block)  # [B, M, K]
        segments = own.shape[1]
        own = own.flatten(0, 1)
        open_to = self.expert.features.present[own].sum(dim=1, keepdim=True) <= self.short  # [B * M, 1]
        items = torch.cat([own, torch.arange(self.first, self.last) * open_to], dim=1)
        one = Memory(items, torch.zeros_like(items[:, :1]), items.shape[1], 1)
        each = (tensor.repeat_interleave(segments, dim=0) for tensor in (candidates, queries))
        view, has_view = self.expert(*each, one, vectors)  # which experts that attend do not look at
        return view.unflatten(0, (-1, segments)).squeeze(2), has_view.unflatten(0, (-1, segments)).squeeze(2)


def prototypes(features: FixedFeatures, memories: Sequence[Items], size: int, plan: Plan, seed: int) -> Vectors:
    """Return the prototypes ``[P, F]`` of all clients' memories, of length 1 as the items' vectors are."""
    vectors, present = features.values.numpy(), features.present.numpy()
    sent = [
        client_centres(vectors[items[present[items]]], plan.centres, plan.least, generator(seed, "centres", user))
        for user, items in enumerate(memories)
    ]
    found = aggregate(sent, size, generator(seed, "prototypes", size))
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)


def extend(model: ResidualMoE, kind: Kind, size: int, memories: Sequence[Items], plan: Plan, seed: int) -> None:
    """Give the experts the slots."""
    for name, expert in model.experts.items():
        features = expert.features
        if kind == "prototypes":
            slots = prototypes(features, memories, size, plan, seed)
        else:
            items = generator(seed, "random items", size).choice(np.flatnonzero(features.present), size, replace=False)
            slots = features.values.numpy()[items]
        model.experts[name] = ExtendedMemory(expert, slots, plan.short)


def cold_ndcg(settings: Settings, dataset: Dataset, kind: Kind, size: int, plan: Plan) -> NDArray[np.float64]:
    """Train with the slots; return NDCG@10 ``[cuts, users]`` of users of whom only the latest items are known."""
    histories, users, seed = dataset.interactions, np.arange(dataset.interactions.num_users), settings.seed
    memories = [training_part(histories.history(user))[-settings.model.memory_size :] for user in users]
    change = partial(extend, kind=kind, size=size, memories=memories, plan=plan, seed=seed)
    model, _ = train_centrally(settings, dataset, CentralPlan(plan.epochs), change=change)
    scorer = catalogue_scorer(model)
    found = [ranks(scorer, histories, users, "test", settings.evaluation, seed, cut) for cut in plan.cuts]
    return np.array([gain(each) for each in found])


def line(label: str, found: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    """Return a row of the table: NDCG@10 for each cut, its gain over another, and p."""
    cells = [
        f"{new.mean():.4f} ({new.mean() / max(old.mean(), 1e-9) - 1:+.1%}, p {paired_p(new, old):.2f})"
        for new, old in zip(found, other, strict=True)
    ]
    return f"| {' | '.join([label, *cells])} |"


def main(words: Sequence[str], plan: Plan = Plan()) -> None:
    """Print the comparison for one seed."""
    settings, _ = load_settings([*words, "experts=attention"])  # a slot has features but no item vector
    dataset = load_dataset(settings)
    own = cold_ndcg(settings, dataset, "own memory only", 0, plan)
    print(line("own memory only", own, own), flush=True)
    for size in plan.sizes:
        borrowed = cold_ndcg(settings, dataset, "prototypes", size, plan)
        control = cold_ndcg(settings, dataset, "random items", size, plan)
        print(line(f"{size} prototypes", borrowed, own))
        print(line(f"{size} random items", control, own))
        print(line("prototypes against these", borrowed, control), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
