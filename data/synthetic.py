"""A seeded data set with planted structure, of any size.

Items belong to clusters that stand in a circle. A user's first item is uniformly random; each further step either (with
probability ``structure``) goes to the next cluster of the circle and there to an item drawn by Zipf's law, or to an
item drawn uniformly from the catalogue. An item's visual and text features are its cluster's prototype plus noise,
so that features tell a model what a never-seen item is like.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data.features import ItemFeatures
from data.interactions import offsets_of
from data.sampling import Interactions, generator
from fedmoe.data_settings import SyntheticSettings

MIN_LENGTH = 5
VISUAL_NOISE = 0.5  # standard deviations of the noise; a prototype's components have 1
TEXT_NOISE = 0.8
_USERS_PER_BLOCK = 50_000  # bounds the memory; part of the definition of a data set


def synthetic(settings: SyntheticSettings, seed: int) -> tuple[Interactions, dict[str, Callable[[], ItemFeatures]]]:
    """Make histories, and two modalities when asked: ``visual``, and ``titles``, which stand for texts.

    The same settings and seed give the same data.
    """
    clusters = planted_clusters(settings, seed)
    blocks = [
        _block(settings, seed, clusters, start, min(start + _USERS_PER_BLOCK, settings.users))
        for start in range(0, settings.users, _USERS_PER_BLOCK)
    ]
    interactions = Interactions(
        items=np.concatenate([items for _, items in blocks]),
        offsets=offsets_of(np.concatenate([lengths for lengths, _ in blocks])),
        user_ids=np.arange(settings.users).astype(np.str_),
        item_ids=np.array(["", *map(str, range(1, settings.items + 1))]),
    )
    return interactions, {
        "visual": partial(_features, settings, seed, clusters, "visual", VISUAL_NOISE),
        "titles": partial(_features, settings, seed, clusters, "text", TEXT_NOISE),
    }


def planted_clusters(settings: SyntheticSettings, seed: int) -> NDArray[np.int64]:
    """Return ``[items]``: the cluster of item ``i + 1``. All clusters have the same size, or one item more."""
    count = min(settings.clusters, settings.items)
    return generator(seed, "synthetic clusters").permutation(np.arange(settings.items) % count)


def _block(
    settings: SyntheticSettings, seed: int, clusters: NDArray[np.int64], start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the lengths ``[stop - start]`` and the items ``[sum of lengths]`` of some users."""
    rng = generator(seed, "synthetic users", start)
    # A Poisson number with a gamma-distributed mean: long tails, as in real histories, and exactly the mean asked for.
    means = rng.gamma(2.0, (settings.mean_length - MIN_LENGTH) / 2.0, size=stop - start)
    lengths = MIN_LENGTH + rng.poisson(means)
    total = int(lengths.sum())
    first = np.zeros(total, np.bool_)
    first[offsets_of(lengths)[:-1]] = True
    random_step = first | (rng.random(total) >= settings.structure)

    # The circle turns a chain of steps into arithmetic: k steps after a random item of cluster c comes c + k.
    position = np.arange(total)
    origin = np.maximum.accumulate(np.where(random_step, position, 0))
    random_items = rng.integers(settings.items, size=total)
    count = int(clusters.max()) + 1
    cluster = (clusters[random_items[origin]] + position - origin) % count
    items = np.where(random_step, random_items, _zipf_members(rng, clusters, cluster))
    return lengths, (items + 1).astype(np.int32)


def _zipf_members(
    rng: np.random.Generator, clusters: NDArray[np.int64], cluster: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw a member (0-based item) of each given cluster; its k-th member has a probability proportional to 1 / k."""
    members = np.argsort(clusters, kind="stable")
    sizes = np.bincount(clusters)
    harmonic = np.concatenate([np.zeros(1), np.cumsum(1.0 / np.arange(1, sizes.max() + 1))])
    place = np.searchsorted(harmonic, rng.random(len(cluster)) * harmonic[sizes[cluster]], side="right") - 1
    drawn: NDArray[np.int64] = members[offsets_of(sizes)[cluster] + np.minimum(place, sizes[cluster] - 1)]
    return drawn


def _features(
    settings: SyntheticSettings, seed: int, clusters: NDArray[np.int64], modality: str, noise: float
) -> ItemFeatures:
    """Return noisy cluster prototypes; a share of the items, rounded to a whole number, has none."""
    rng = generator(seed, f"synthetic {modality}")
    prototypes = rng.standard_normal((int(clusters.max()) + 1, settings.feature_dim), np.float32)
    values = np.zeros((settings.items + 1, settings.feature_dim), np.float32)
    values[1:] = prototypes[clusters] + noise * rng.standard_normal(values[1:].shape, np.float32)
    present = np.ones(settings.items + 1, np.bool_)
    present[0] = False
    present[1 + rng.permutation(settings.items)[: round(settings.missing * settings.items)]] = False
    values[~present] = 0.0
    return ItemFeatures(values, present)
