"""One row for each interaction turned into histories."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.file_forms import LEAST_TIME
from data.sampling import Interactions, NewItems, generator
from fedmoe.data_settings import KeepOrDrop
from fedmoe.errors import FedMoEError

_SORTED = 0.95  # of the steps of all histories
_LAST_SECOND = 1e10  # the year 2286


class Codes(NamedTuple):
    """A column of ids as its distinct names and, for each row, the index of its name."""

    names: NDArray[np.str_]
    rows: NDArray[np.integer[Any]]


class Events(NamedTuple):
    """One row per interaction, in the file's order.

    Attributes:
        form: what the file was read as.
        left_out: rows that were left out, since a value is missing.
    """

    users: Codes
    items: Codes
    times: NDArray[Any] | None
    form: str = ""
    left_out: int = 0


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


def rows_to_keep(events: Events, duplicates: KeepOrDrop, repeats: KeepOrDrop) -> tuple[NDArray[np.bool_], list[str]]:
    """Return which rows count, bool ``[rows]``, and what to tell of those that occur more than once.

    A duplicate has user, item and time of an earlier row: it can be told only where there are times. A repeat has user
    and item of an earlier interaction, at another time. Of rows that are alike the earliest is kept.
    """
    pairs = events.users.rows.astype(np.int64) * len(events.items.names) + events.items.rows
    order = np.argsort(pairs, kind="stable") if events.times is None else np.lexsort((events.times, pairs))
    kept, notes = np.ones(len(pairs), np.bool_), []
    if events.times is not None:
        kept = _first(order, pairs, events.times)
        if copies := int(np.count_nonzero(~kept)):
            notes.append(f"{copies} duplicate rows {_what(duplicates)}")
    first = _first(order, pairs)
    if again := int(np.count_nonzero(kept & ~first)):
        notes.append(f"{again} repeats of an item by its user {_what(repeats)}")
    kept = kept if duplicates == "drop" else np.ones_like(kept)
    return kept & first if repeats == "drop" else kept, notes


def _first(order: NDArray[np.intp], *columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows are the first of those alike in all columns; ``order`` brings such rows together."""
    new = np.ones(len(order), np.bool_)
    new[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    first = np.empty_like(new)
    first[order] = new
    return first


def _what(choice: KeepOrDrop) -> str:
    return "dropped" if choice == "drop" else "kept"


def time_span(times: NDArray[Any] | None) -> list[str]:
    """Return the first and the last day of times in seconds; nothing if they are in another unit."""
    if times is None or not len(times) or times.min() < LEAST_TIME or times.max() > _LAST_SECOND:
        return []
    first, last = (datetime.fromtimestamp(float(each), UTC).date() for each in (times.min(), times.max()))
    return [f"{first} to {last}"]


def sorted_by_item(interactions: Interactions) -> list[str]:
    """Return a note if nearly all histories ascend by item, as files do that were sorted by user and item."""
    within = np.ones(len(interactions.items) - 1, bool)
    within[interactions.offsets[1:-1] - 1] = False  # from one user's last item to the next one's first
    steps = np.diff(interactions.items)[within]
    if not len(steps) or (steps >= 0).mean() < _SORTED:
        return []
    return [
        "items ascend by id in nearly all histories, which is hardly their order in time: the next one is easy to tell"
    ]


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


def withheld(interactions: Interactions, share: float, seed: int, min_items: int) -> tuple[Interactions, NewItems, int]:
    """Withhold a seeded share of the catalogue from all histories; items keep their numbers.

    Returns:
        The histories without these items, the new items, and the number of users dropped because fewer than
        ``min_items`` items are left to them.

    Raises:
        FedMoEError: the share is less than one item, or no user is left.
    """
    catalogue, users = interactions.num_items, interactions.num_users
    if not (size := round(share * catalogue)):
        raise FedMoEError(f"data.new_items={share} withholds none of {catalogue} items - raise it, or set it to 0")
    chosen = np.sort(generator(seed, "new items").choice(catalogue, size, replace=False) + 1).astype(np.int32)
    is_new = np.isin(interactions.items, chosen)
    user = np.repeat(np.arange(users), np.diff(interactions.offsets))
    offsets = offsets_of(np.bincount(user[~is_new], minlength=users))
    left, dropped = without_short_users(
        Interactions(interactions.items[~is_new], offsets, interactions.user_ids, interactions.item_ids), min_items
    )
    before = np.cumsum(~is_new) - offsets[user]  # at a new item: the user's other items up to there
    long_enough = np.diff(offsets) >= min_items
    places = np.flatnonzero(is_new & (before > 0) & long_enough[user])
    last = places[np.append(np.diff(user[places]) > 0, True)[: len(places)]]
    number = np.cumsum(long_enough) - 1  # of a user among those left
    return left, NewItems(chosen, number[user[last]], interactions.items[last], before[last]), dropped


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
