"""The histories of all users in one flat array, so that a million users are one memory map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

_FILES = ("items", "offsets", "user_ids", "item_ids")


class Codes(NamedTuple):
    """A column of ids as its distinct names and, for each row, the index of its name."""

    names: NDArray[np.str_]
    rows: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Interactions:
    """The items each user has met, oldest first.

    Attributes:
        items: int32 ``[total]``, the histories one after the other; values ``1..num_items``.
        offsets: int64 ``[num_users + 1]``; user ``u`` owns ``items[offsets[u]:offsets[u + 1]]``.
        user_ids: str ``[num_users]``, the id of each user in the source.
        item_ids: str ``[num_items + 1]``, the id of each item in the source; entry 0 is ``""``, the padding.
    """

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    user_ids: NDArray[np.str_]
    item_ids: NDArray[np.str_]

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.user_ids) + 1 or self.offsets[-1] != len(self.items):
            raise FedMoEError(
                f"histories do not fit together: {len(self.user_ids)} users, {len(self.offsets)} offsets up to "
                f"{self.offsets[-1]}, {len(self.items)} items - make them again"
            )

    @property
    def num_users(self) -> int:
        """Number of users, which is the number of clients."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items of the catalogue, without the padding."""
        return len(self.item_ids) - 1

    def history(self, user: int) -> NDArray[np.int32]:
        """Return the items of user ``0..num_users-1``, oldest first, as a view."""
        if not 0 <= user < self.num_users:
            raise FedMoEError(f"user {user} does not exist: the data set has users 0 to {self.num_users - 1}")
        return np.asarray(self.items[self.offsets[user] : self.offsets[user + 1]])

    def save(self, folder: Path) -> None:
        """Write the four arrays as ``.npy`` files into ``folder``, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Interactions:
        """Open what ``save`` wrote, as read-only memory maps."""
        try:
            return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES))
        except (OSError, ValueError, EOFError) as error:
            raise FedMoEError(f"{folder}: the histories cannot be read ({error}) - make them again") from error


def from_events(
    users: Codes | NDArray[Any],
    items: Codes | NDArray[Any],
    times: NDArray[Any] | None,
    min_items: int,
    catalogue: Iterable[str] = (),
) -> tuple[Interactions, int]:
    """Turn one row per interaction into histories.

    A user's rows are sorted by time; equal times, and all rows where ``times`` is None, keep the order of the file.
    Users with fewer than ``min_items`` rows are dropped. The catalogue is every item of the histories that are kept,
    plus the ids in ``catalogue``. Users and items are numbered in the order of their ids, as integers if all are.

    Args:
        users: ids ``[rows]``, integers or strings, or the same as ``Codes``.
        items: ids ``[rows]``, likewise.
        times: numbers ``[rows]`` in any unit, or None.
        min_items: the least length of a history.
        catalogue: ids of further items that can be recommended.

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
    item_ids, new_item = _catalogue(item_names, sequence, catalogue)
    interactions = Interactions(
        items=new_item[sequence],
        offsets=offsets_of(lengths[kept]),
        user_ids=user_names[kept],
        item_ids=np.concatenate([np.array([""]), item_ids]),
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


def _catalogue(
    names: NDArray[np.str_], used: NDArray[np.integer[Any]], extra: Iterable[str]
) -> tuple[NDArray[np.str_], NDArray[np.int32]]:
    """Return the catalogue's ids, and for each index into ``names`` the item's new number (0 where it is not in it)."""
    present = names[np.bincount(used, minlength=len(names)) > 0]
    ids = np.unique(np.concatenate([present, np.array([*extra], dtype=np.str_)]))
    ids = ids[id_order(ids)]
    # Both are distinct: the position of a name in the sorted catalogue leads to its number.
    sorted_ids = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids, names, sorter=sorted_ids), len(ids) - 1)
    found = sorted_ids[place]
    return ids, np.where(ids[found] == names, found + 1, 0).astype(np.int32)
