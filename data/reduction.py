"""Wide item features reduced to their principal components, since every client projects them in every step."""

from __future__ import annotations

import numpy as np

from data.catalogue import ItemFeatures


def principal_components(features: ItemFeatures, dim: int) -> ItemFeatures:
    """Return the features' ``dim`` leading principal components; narrower features, and dim 0, are left as they are.

    Rows are scaled to length 1 first, so that no item counts for more than another. A component's sign, which is
    arbitrary, is chosen such that its largest weight is positive: every machine gets the same features.
    """
    if dim == 0 or features.dim <= dim:
        return features
    rows = features.values[features.present].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)  # eigenvalues ascend
    components = vectors[:, ::-1][:, :dim]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(dim)])
    values = np.zeros((len(features.values), dim), np.float32)
    values[features.present] = rows @ components
    return ItemFeatures(values, features.present)
