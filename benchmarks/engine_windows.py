"""The very windows and negatives that a client of the federation trains on in a round, for other ways to train them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from data.registry import Dataset
from data.sampling import generator
from data.splits import training_part
from fedmoe.settings import Settings
from fedmoe_client.learning.batches import WindowBatch, window_batches


def client_batches(dataset: Dataset, settings: Settings, server_round: int, client: int) -> Iterator[WindowBatch]:
    """Yield the batches of a client's first epoch in a round."""
    rng = generator(settings.seed, "training", server_round, client)
    rng.integers(2**62)  # the client seeds its dropout with it
    items = training_part(dataset.interactions.history(client))
    number = dataset.interactions.num_items
    return window_batches(items, number, settings.model, settings.training, rng, torch.device("cpu"))


def joined(batches: Sequence[WindowBatch]) -> WindowBatch:
    """Return several batches as one."""
    negatives = [batch.negatives for batch in batches if batch.negatives is not None]
    return WindowBatch(
        torch.cat([batch.context for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        torch.cat(negatives) if negatives else None,
    )


def parts(batch: WindowBatch, size: int) -> Iterator[WindowBatch]:
    """Cut a batch into batches of at most ``size`` windows."""
    for start in range(0, len(batch.targets), size):
        cut = slice(start, start + size)
        yield WindowBatch(
            batch.context[cut], batch.targets[cut], None if batch.negatives is None else batch.negatives[cut]
        )
