"""From a user's training items to batches of packed windows with their memory's items and negatives.

Shapes: B windows, L positions, P earlier items for the experts' memory, n negatives, V items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.sampling import PackedWindows, packed_windows, sample_negatives
from fedmoe.settings import ModelSettings, TrainingSettings


@dataclass(frozen=True)
class WindowBatch:
    """context ``[B, P + L]``: earlier items, then the inputs; targets ``[B, L]``; negatives ``[B, n]``, or None where
    the loss runs over the whole catalogue. Item ids, 0 = padding, all on one device."""

    context: Tensor
    targets: Tensor
    negatives: Tensor | None


def window_batches(
    items: NDArray[np.int32],
    num_items: int,
    model: ModelSettings,
    training: TrainingSettings,
    rng: np.random.Generator,
    device: torch.device,
) -> Iterator[WindowBatch]:
    """Yield one epoch of a user's windows, in random order, or of as many as ``max_windows`` allows.

    items: its training part, oldest first.

    Negatives are drawn from the items outside the training part alone: leaving out the validation or the test item
    as well would tell which they are.
    """
    windows = packed_windows(items, model.max_seq_len, training.windows, rng)
    context = with_earlier_items(windows, items, model.memory_size if model.mixture else 0)
    seen = np.unique(items)
    order = _chosen(len(windows), training.max_windows, rng)
    for chosen in np.split(order, range(training.batch_size, len(order), training.batch_size)):
        yield WindowBatch(
            _tensor(context[chosen], device),
            _tensor(windows.targets[chosen], device),
            None
            if training.loss == "softmax"
            else _tensor(_negatives(rng, num_items, seen, len(chosen), training), device),
        )


def _chosen(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return which windows are trained, in random order: all, or the latest and others drawn at random.

    The latest is nearest to what is to be recommended: with it a federation learns more than with windows drawn alike.
    """
    if not most or count <= most:
        return rng.permutation(count)
    others = rng.choice(count - 1, size=most - 1, replace=False)
    return rng.permutation(np.append(others, count - 1))


def with_earlier_items(windows: PackedWindows, items: NDArray[np.int32], earlier: int) -> NDArray[np.int32]:
    """Return int32 ``[W, earlier + L]``: each window's inputs, preceded by the items before its start."""
    padded = np.concatenate([np.zeros(earlier, np.int32), items])
    before = padded[windows.starts[:, None] + np.arange(earlier)]
    return np.concatenate([before, windows.inputs], axis=1)


def _negatives(
    rng: np.random.Generator, num_items: int, seen: NDArray[np.int32], windows: int, training: TrainingSettings
) -> NDArray[np.int32]:
    drawn = sample_negatives(rng, num_items, seen, windows * training.num_negatives)
    return drawn.reshape(windows, training.num_negatives)


def _tensor(array: NDArray[np.int32], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array.astype(np.int64))
    if device.type == "cuda":  # from pinned memory a copy does not wait for the kernels before it
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
