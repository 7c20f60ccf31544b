"""Principal components of item features."""

from __future__ import annotations

import numpy as np

from data.catalogue import ItemFeatures
from data.reduction import principal_components


def features(width: int = 6, items: int = 20) -> ItemFeatures:
    values = np.random.default_rng(1).normal(size=(items + 1, width)).astype(np.float32)
    present = np.arange(items + 1) % 4 != 0
    return ItemFeatures(values * present[:, None], present)


def test_narrow_features_and_dim_0_are_left_alone() -> None:
    given = features()
    assert principal_components(given, 6) is given
    assert principal_components(given, 0) is given


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    given = features()
    found = principal_components(given, 3)
    rows = given.values[given.present].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    left, sizes, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.values[given.present]), np.abs(left * sizes)[:, :3], atol=1e-6)
    assert (found.values[~given.present] == 0).all()
    assert found.present is given.present


def test_signs_do_not_depend_on_the_order_of_the_items() -> None:
    given = features()
    order = np.concatenate([[0], 1 + np.random.default_rng(2).permutation(20)])
    shuffled = principal_components(ItemFeatures(given.values[order], given.present[order]), 3)
    np.testing.assert_allclose(shuffled.values, principal_components(given, 3).values[order], atol=1e-6)
