"""The synthetic data set: sizes, planted structure, features, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.features import ItemFeatures
from data.sampling import Interactions
from data.synthetic import MIN_LENGTH, planted_clusters, synthetic
from fedmoe.data_settings import SyntheticSettings


def steps(interactions: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs (item, next item) of all users."""
    inside = np.ones(len(interactions.items), np.bool_)
    inside[interactions.offsets[:-1]] = False
    following = np.flatnonzero(inside)
    return interactions.items[following - 1], interactions.items[following]


@given(
    st.builds(
        SyntheticSettings,
        users=st.integers(1, 40),
        items=st.integers(10, 40),
        mean_length=st.floats(5, 20),
        structure=st.floats(0, 1),
        clusters=st.integers(2, 60),
        feature_dim=st.integers(2, 5),
        missing=st.floats(0, 1),
    ),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=50)
def test_any_settings_give_a_sound_data_set(sizes: SyntheticSettings, seed: int) -> None:
    interactions, own = synthetic(sizes, seed)
    assert (interactions.num_users, interactions.num_items) == (sizes.users, sizes.items)
    assert interactions.items.dtype == np.int32
    assert interactions.items.min() >= 1 and interactions.items.max() <= sizes.items
    assert np.diff(interactions.offsets).min() >= MIN_LENGTH
    for features in (make() for make in own.values()):
        assert features.values.shape == (sizes.items + 1, sizes.feature_dim)
        assert features.values.dtype == np.float32
        assert int((~features.present[1:]).sum()) == round(sizes.missing * sizes.items)
        assert not features.values[~features.present].any()


def test_the_same_seed_gives_the_same_data_and_another_seed_does_not() -> None:
    sizes = SyntheticSettings()
    (first, first_own), (again, again_own), (other, _) = (synthetic(sizes, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.items, again.items)
    np.testing.assert_array_equal(first_own["visual"]().values, again_own["visual"]().values)
    assert not np.array_equal(first.items[:50], other.items[:50])


def test_mean_length() -> None:
    interactions, _ = synthetic(SyntheticSettings(users=20_000, mean_length=30.0), 0)
    assert len(interactions.items) / 20_000 == pytest.approx(30.0, rel=0.01)


@pytest.mark.parametrize("structure", [0.0, 0.5, 1.0])
def test_the_share_of_steps_to_the_next_cluster(structure: float) -> None:
    sizes = SyntheticSettings(users=2000, items=400, clusters=10, structure=structure)
    before, after = steps(synthetic(sizes, 3)[0])
    clusters = planted_clusters(sizes, 3)
    share = ((clusters[before - 1] + 1) % 10 == clusters[after - 1]).mean()
    assert share == pytest.approx(structure + (1 - structure) / 10, abs=0.01)


def test_without_structure_all_items_are_equally_popular() -> None:
    interactions, _ = synthetic(SyntheticSettings(users=5000, items=50, structure=0.0), 0)
    shares = np.bincount(interactions.items, minlength=51)[1:] / len(interactions.items)
    np.testing.assert_allclose(shares, 1 / 50, atol=0.002)


def test_with_structure_popularity_within_a_cluster_follows_zipf() -> None:
    sizes = SyntheticSettings(users=5000, items=40, clusters=4, structure=1.0)
    _, after = steps(synthetic(sizes, 0)[0])
    members = np.flatnonzero(planted_clusters(sizes, 0) == 2) + 1
    counts = np.array([(after == item).sum() for item in members], dtype=float)
    zipf = 1 / np.arange(1, 11)
    np.testing.assert_allclose(counts / counts.sum(), zipf / zipf.sum(), atol=0.01)


def test_clusters_are_balanced() -> None:
    assert np.bincount(planted_clusters(SyntheticSettings(items=31, clusters=4), 0)).tolist() == [8, 8, 8, 7]
    assert np.bincount(planted_clusters(SyntheticSettings(items=10, clusters=60), 0)).tolist() == [1] * 10


def own_cluster_share(features: ItemFeatures, clusters: np.ndarray) -> float:
    """Return the share of items whose nearest mean feature is that of their own cluster."""
    rows = np.flatnonzero(features.present)
    values, labels = features.values[rows], clusters[rows - 1]
    means = np.stack([values[labels == label].mean(axis=0) for label in range(clusters.max() + 1)])
    distances = ((values[:, None] - means) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == labels).mean())


def test_both_modalities_tell_the_cluster_and_differ() -> None:
    sizes = SyntheticSettings(items=600)
    visual, text = (make() for make in synthetic(sizes, 0)[1].values())
    clusters = planted_clusters(sizes, 0)
    assert own_cluster_share(visual, clusters) > 0.95
    assert own_cluster_share(text, clusters) > 0.95
    assert not np.array_equal(visual.present, text.present)
    assert not np.allclose(visual.values, text.values)
