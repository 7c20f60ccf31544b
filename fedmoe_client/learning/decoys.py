"""Decoys: items among the negatives of a client in each of its rounds, as the items of its history are in each.

Which rows of the item table a client changed is plain to the server. Negatives hide the history in a single round, yet
they are drawn anew each time, so what is left when the rows of several rounds are intersected is the history. Decoys
are left as well. They are not sent along but trained: each takes over the part of one of the negatives that were drawn,
so its row changes just as a negative's does, as often and by as much. What tells negatives from targets, such as
the length of a change, tells decoys from targets too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.sampling import generator
from fedmoe_client.learning.batches import WindowBatch


def decoy_items(secret: int, user: int, num_items: int, own: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Return up to ``count`` distinct items outside ``own``, ascending: the same ones in each round.

    An item that joins the history replaces itself alone: the other decoys stay.

    secret: what only the client knows; whoever knows it can draw the same.
    own: the user's training items.
    """
    count = min(count, num_items - len(np.unique(own)))
    rng = generator(secret, "decoys", user)
    found: dict[int, None] = {}
    left_out = set(own.tolist())
    while len(found) < count:
        for item in rng.integers(1, num_items + 1, size=64).tolist():
            if item not in left_out and len(found) < count:
                found[item] = None
    return np.array(sorted(found), np.int64)


def with_decoys(
    batches: Sequence[WindowBatch], decoys: NDArray[np.int64], rng: np.random.Generator
) -> list[WindowBatch]:
    """Return the batches with decoys in the place of as many of their distinct negatives, chosen by ``rng``.

    A decoy that was drawn as a negative stays as it is. Where there are fewer distinct negatives than decoys, all
    negatives become decoys. Batches without negatives (a loss over the whole catalogue) have nothing to hide.
    """
    drawn = [batch.negatives for batch in batches if batch.negatives is not None]
    if not drawn or not len(decoys):
        return list(batches)
    present = torch.unique(torch.cat([negatives.flatten() for negatives in drawn])).cpu().numpy()
    missing = np.setdiff1d(decoys, present)
    free = np.setdiff1d(present, decoys)
    size = min(len(missing), len(free))
    old = np.sort(rng.choice(free, size=size, replace=False))
    new = rng.permutation(missing)[:size]
    device = drawn[0].device
    exchange = torch.from_numpy(old).to(device), torch.from_numpy(new).to(device)
    return [
        batch if batch.negatives is None else replace(batch, negatives=_exchanged(batch.negatives, *exchange))
        for batch in batches
    ]


def _exchanged(ids: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return ids with each of ``old`` (ascending) replaced by the one of ``new`` at its place."""
    if not len(old):
        return ids
    place = torch.searchsorted(old, ids).clamp_max(len(old) - 1)
    return torch.where(old[place] == ids, new[place], ids)
