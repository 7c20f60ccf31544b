"""One row for each interaction turned into histories."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.sampling import Interactions
from fedmoe.errors import FedMoEError


class Codes(NamedTuple):
    """A column of ids as its distinct names and, for each row, the index of its name."""

    names: NDArray[np.str_]
    rows: NDArray[np.integer[Any]]


def from_events(
    users: Codes | NDArray[Any],
    items: Codes | NDArray[Any],
    times: NDArray[Any] | None,
    min_items: int,
) -> tuple[Interactions, int]:
    """Turn one row per interaction into histories.

    A user's rows are sorted by time; equal times, and all rows where ``times`` is None, keep the order of the file.
    Users with fewer than ``min_items`` rows are dropped. The catalogue is every item of the histories that are kept.
    Users and items are numbered in the order of their ids, as integers if all are.

    Args:
        users: ids ``[rows]``, integers or strings, or the same as ``Codes``.
        items: ids ``[rows]``, likewise.
        times: numbers ``[rows]`` in any unit, or None.
        min_items: the least length of a history.

    Returns:
        The histories and the number of users that were dropped.

    Raises:
        FedMoEError: no user is left.
    """
    user_names, user_rows = _encode(users)
    item_names, item_rows = _encode(items)
    order = np.argsort(user_rows, kind="stable") if times is None else np.lexsort((times, user_rows))
    lengths = np.bincount(user_rows, minlength=len(user_names))
    kept = lengths >= min_items
    if not kept.any():
        longest = int(lengths.max(initial=0))
        raise FedMoEError(f"no user has {min_items} items, the longest history has {longest} - lower data.min_items")
    sequence = item_rows[order[kept[user_rows[order]]]]
    present = np.flatnonzero(np.bincount(sequence, minlength=len(item_names)))
    present = present[id_order(item_names[present])]  # without the names that are gone they may all be integers
    number = np.zeros(len(item_names), np.int32)
    number[present] = np.arange(1, len(present) + 1)
    interactions = Interactions(
        items=number[sequence],
        offsets=offsets_of(lengths[kept]),
        user_ids=user_names[kept],
        item_ids=np.concatenate([np.array([""]), item_names[present]]),
    )
    return interactions, int(np.count_nonzero(lengths) - np.count_nonzero(kept))


def without_short_users(interactions: Interactions, min_items: int) -> tuple[Interactions, int]:
    """Drop the users with fewer than ``min_items`` items; the catalogue stays as it is.

    Returns:
        The histories that are left and the number of users dropped.
    """
    lengths = np.diff(interactions.offsets)
    kept = lengths >= min_items
    if kept.all():
        return interactions, 0
    if not kept.any():
        raise FedMoEError(f"no user has {min_items} items - lower data.min_items")
    left = Interactions(
        items=interactions.items[np.repeat(kept, lengths)],
        offsets=offsets_of(lengths[kept]),
        user_ids=interactions.user_ids[kept],
        item_ids=interactions.item_ids,
    )
    return left, int(np.count_nonzero(~kept))


def offsets_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each of consecutive pieces of these lengths starts, and where the last ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def id_order(names: NDArray[np.str_]) -> NDArray[np.intp]:
    """Return the permutation that sorts distinct ids: by value if all are integers, else as strings."""
    try:
        values = names.astype(np.int64)
    except (ValueError, OverflowError):
        return np.argsort(names, kind="stable")
    return np.lexsort((names, values))


def _encode(ids: Codes | NDArray[Any]) -> Codes:
    """Return ids as ``Codes`` whose names are in the order of ``id_order``."""
    if isinstance(ids, Codes):
        names, rows = ids
    else:
        distinct, rows = np.unique(ids, return_inverse=True)
        names = distinct.astype(np.str_)
    order = id_order(names)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return Codes(names[order], rank[rows])
