"""Histories and all that a client draws from one: its parts, random streams, negatives, windows, candidates.

Leave-one-out: the last item of a history is the test item, the last but one the validation item.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

Split = Literal["validation", "test"]
NEW = "new"  # stands for a split where withheld items are ranked
AMONG_NEW = "among-new-"  # begins the names of metrics of a ranking among the withheld items alone
Windows = Literal["all", "latest", "random"]


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


@dataclass(frozen=True)
class NewItems:
    """Items withheld from all training, as if the catalogue had got them afterwards, and who met one of them.

    Of each user who did the last such interaction counts; what it met before it are items of its history alone.

    Attributes:
        items: int32 ``[withheld]``, ascending.
        users: int64 ``[cases]``, ascending.
        targets: int32 ``[cases]``, the withheld item that each of these users met last.
        before: int64 ``[cases]``, how many items of the user's history came before it, at least one.
    """

    items: NDArray[np.int32]
    users: NDArray[np.int64]
    targets: NDArray[np.int32]
    before: NDArray[np.int64]

    def case(self, user: int, history: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
        """Return the context and the withheld item of a user. FedMoEError: it has met none."""
        place = int(np.searchsorted(self.users, user))
        if place == len(self.users) or self.users[place] != user:
            raise FedMoEError(f"user {user} has met none of the {len(self.items)} new items")
        return history[: self.before[place]], int(self.targets[place])


def training_part(history: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the items a client may train on: all but the last two."""
    return history[:-2]


def held_out(history: NDArray[np.int32], split: Split) -> tuple[NDArray[np.int32], int]:
    """Return the context, which is every item met before the held-out one, and the held-out item.

    Args:
        history: at least three items, oldest first.
        split: ``"validation"`` holds out ``history[-2]``, ``"test"`` holds out ``history[-1]``.

    Raises:
        ValueError: the history is too short to be split, or the split is unknown.
    """
    if len(history) < 3:
        raise ValueError(f"a history of {len(history)} items cannot be split: three are needed")
    if split == "validation":
        return history[:-2], int(history[-2])
    if split == "test":
        return history[:-1], int(history[-1])
    raise ValueError(f"split is 'validation' or 'test', not {split!r}")


def generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """Return the random stream of (seed, purpose, ids), independent of every other stream.

    The key is hashed: numpy's seed sequences pad with zeros, so ``[seed, 1]`` and ``[seed, 1, 0]`` would be one stream.
    """
    key = repr((int(seed), purpose, *(int(i) for i in ids))).encode()
    return np.random.default_rng(int.from_bytes(blake2b(key, digest_size=16).digest(), "little"))


@dataclass(frozen=True)
class Negatives:
    """The items that negatives are drawn from: ``1..num_items`` without ``withheld``, int32, in any order."""

    num_items: int
    withheld: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def excluded(self, met: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return what is no negative of a user who has met these items, ascending and distinct."""
        return np.unique(np.concatenate([met, self.withheld]))

    def draw(self, rng: np.random.Generator, excluded: NDArray[np.int32], size: int) -> NDArray[np.int32]:
        """Draw negatives: see ``sample_negatives``."""
        return sample_negatives(rng, self.num_items, excluded, size)


def sample_negatives(
    rng: np.random.Generator, num_items: int, exclude_sorted_unique: NDArray[np.int32], size: int
) -> NDArray[np.int32]:
    """Draw items uniformly, with replacement, from ``1..num_items`` without the excluded ones.

    The cost is ``size * log(excluded)``, whatever the size of the catalogue.

    Args:
        rng: the stream to draw from.
        num_items: size of the catalogue.
        exclude_sorted_unique: ``[excluded]``, ascending and distinct, each in ``1..num_items``.
        size: number of draws.

    Returns:
        int32 ``[size]``.
    """
    left = _count_left(num_items, exclude_sorted_unique)
    if left == 0 and size > 0:
        raise FedMoEError(f"no item is left to draw negatives from: all {num_items} items are in the user's history")
    ranks = rng.integers(left, size=size) if size else np.zeros(0, np.int64)
    return _items_outside(exclude_sorted_unique, ranks)


def evaluation_candidates(
    seed: int, user: int, num_items: int, history: NDArray[np.int32], size: int
) -> NDArray[np.int32]:
    """Draw the fixed negatives of a user: distinct items outside the whole history, the same for one (seed, user).

    Returns:
        int32 ``[size]``.
    """
    seen = np.unique(history)
    left = _count_left(num_items, seen)
    if size > left:
        raise FedMoEError(
            f"user {user} has not met only {left} of {num_items} items, {size} candidates cannot be drawn "
            "- lower evaluation.num_candidates or use evaluation.protocol=full"
        )
    ranks = generator(seed, "evaluation candidates", user).choice(left, size=size, replace=False)
    return _items_outside(seen, ranks)


def _count_left(num_items: int, exclude: NDArray[np.int32]) -> int:
    if len(exclude) and not (exclude[0] >= 1 and exclude[-1] <= num_items and (np.diff(exclude) > 0).all()):
        raise ValueError(f"excluded items must be ascending, distinct and within 1..{num_items}")
    return num_items - len(exclude)


def _items_outside(exclude: NDArray[np.int32], ranks: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return, for each rank ``r >= 0``, the item that has ``r`` items before it which are not excluded."""
    # exclude[i] has exclude[i] - 1 - i free items before it: it pushes every rank from there on up by one.
    free_before = exclude - 1 - np.arange(len(exclude))
    return (ranks + 1 + np.searchsorted(free_before, ranks, side="right")).astype(np.int32)


@dataclass(frozen=True)
class PackedWindows:
    """Training windows; at each position the target is the item that follows the input. 0 is padding, at the left.

    Attributes:
        inputs: int32 ``[W, L]``.
        targets: int32 ``[W, L]``, 0 exactly where ``inputs`` is 0.
        starts: int64 ``[W]``, where in the training part each window's first real input stands.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.inputs)


def packed_windows(
    training_items: NDArray[np.int32],
    max_seq_len: int,
    which: Windows = "all",
    rng: np.random.Generator | None = None,
) -> PackedWindows:
    """Cut the training part into windows, each of which trains all its positions in one pass.

    ``all``: every item but the first is a target exactly once; cut from the end, so that only the earliest window,
    which comes first, may be padded. ``latest``: the last of these. ``random``: one window whose last target is drawn
    uniformly. A training part of fewer than two items has no target and so no window.

    Args:
        training_items: ``[n]``, oldest first.
        max_seq_len: positions of a window, L.
        which: see above.
        rng: the stream to draw from, needed by ``random``.
    """
    last = max(len(training_items) - 1, 0)  # index of the last target = number of targets
    if which == "random" and last > 0:
        if rng is None:
            raise ValueError("random windows need a generator")
        last = int(rng.integers(1, last + 1))
    if which != "all":
        first = max(last - max_seq_len, 0)
        windows = _pack(training_items[first : last + 1], max_seq_len)
        return PackedWindows(windows.inputs, windows.targets, windows.starts + first)
    return _pack(training_items, max_seq_len)


def _pack(items: NDArray[np.int32], length: int) -> PackedWindows:
    """Cut consecutive windows from the end of ``items``."""
    targets = max(len(items) - 1, 0)
    count = -(-targets // length)
    padding = count * length - targets
    padded = np.zeros((2, count * length), np.int32)
    if count:
        padded[0, padding:], padded[1, padding:] = items[:-1], items[1:]
    starts = np.maximum(np.arange(count, dtype=np.int64) * length - padding, 0)
    windows = padded.reshape(2, count, length)
    return PackedWindows(windows[0], windows[1], starts)


def items_of_a_round(
    offsets: NDArray[np.int64], max_seq_len: int, which: Windows, max_windows: int
) -> NDArray[np.int64]:
    """Return about how many items each user trains on in a round, ``[users]``: what its call costs.

    offsets: ``[users + 1]``, where the histories begin and end; max_windows: windows of an epoch, 0 for no limit.
    """
    lengths = np.diff(offsets)
    windows = max_windows if which == "all" else 1
    return np.minimum(lengths, windows * max_seq_len) if windows else lengths
