"""A client's own history: a file that grows, or a folder with one such file for each user of a silo or household.

One event a line: the item's id and, if wanted, its time as a number after a blank or tab. Without times the order of
the file counts; with them, lines are put in the order of time, and equal times keep the file's. Blank lines and lines
that begin with ``#`` are left out. A line counts once it has ended: what is still being written is read next time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

SUFFIX = ".txt"
LEAST = 3  # two items are held out, and one is needed to predict from


@dataclass(frozen=True)
class OwnHistories:
    """The histories that a client trains on: one user's, or those of all users of a silo.

    Attributes:
        num_items: size of the catalogue.
        of: user -> items int32, oldest first. A user of a silo is numbered by its name, which never leaves.
        names: user -> name of its file.
        unknown: user -> items of the file that are not in the catalogue, and so were left out.
    """

    num_items: int
    of: Mapping[int, NDArray[np.int32]]
    names: Mapping[int, str]
    unknown: Mapping[int, tuple[str, ...]]

    @property
    def users(self) -> list[int]:
        """The users, in a fixed order."""
        return list(self.of)

    def history(self, user: int) -> NDArray[np.int32]:
        """Return a user's items, oldest first."""
        return self.of[user]


def read_histories(path: Path, number: int, item_numbers: Mapping[str, int], least: int = LEAST) -> OwnHistories:
    """Read a client's history file or folder as it is now.

    Args:
        path: a file, or a folder of files ``NAME.txt``, of which those with fewer than ``least`` items are left out.
        number: the client's number, which is the user's where there is one.
        item_numbers: item id -> number in the catalogue, 1 to num_items.
        least: the smallest number of items that can be trained on; 0: whatever is there.

    Raises:
        FedMoEError: there is no file, a line cannot be read, or no user has enough items of the catalogue.
    """
    files = {number_of(file.stem): file for file in _files(path)} if path.is_dir() else {number: path}
    found: dict[int, NDArray[np.int32]] = {}
    unknown: dict[int, tuple[str, ...]] = {}
    counted: dict[str, int] = {}
    for user, file in files.items():
        items, unknown[user] = read_history(file, item_numbers)
        counted[file.name] = len(items)
        if len(items) >= least:
            found[user] = items
    if not found:
        raise FedMoEError(f"{path}: {_too_short(path, counted, unknown, least)}")
    names = {user: files[user].stem for user in found}
    return OwnHistories(len(item_numbers), found, names, {user: unknown[user] for user in found})


def read_history(path: Path, item_numbers: Mapping[str, int]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return the items of one user's file, int32, oldest first, and the ids that the catalogue does not have."""
    events = list(_events(path))
    if any(time is not None for _, _, time in events):
        if without := [line for line, _, time in events if time is None]:
            raise FedMoEError(f"{path}, line {without[0]}: has no time, other lines have one - give all of them one")
        events.sort(key=lambda event: event[2] or 0.0)  # stable: equal times keep the file's order
    known = [item_numbers[item] for _, item, _ in events if item in item_numbers]
    return np.array(known, np.int32), tuple(item for _, item, _ in events if item not in item_numbers)


def _events(path: Path) -> Iterator[tuple[int, str, float | None]]:
    """Yield (line number, item id, time or None) of every line that has ended."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FedMoEError(f"{path}: the history cannot be read ({error.strerror}) - correct the path") from error
    except UnicodeDecodeError:
        raise FedMoEError(f"{path}: the history is not UTF-8 text - one item id a line is expected") from None
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise FedMoEError(f"{path}, line {number}: has {len(words)} words - a line is an item id, or 'item time'")
        yield number, words[0], _time(path, number, words[1]) if len(words) == 2 else None


def _time(path: Path, number: int, word: str) -> float:
    try:
        time = float(word)
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        raise FedMoEError(f"{path}, line {number}: time is '{word}' - it must be a number")
    return time


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        raise FedMoEError(f"{folder}: holds no history - put a file NAME{SUFFIX} there for each user")
    return files


def number_of(name: str) -> int:
    """Return the number of a silo's user: a hash, so that it stays the same when files come and go."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "little") >> 1


def _too_short(path: Path, counted: Mapping[str, int], unknown: Mapping[int, tuple[str, ...]], least: int) -> str:
    longest, strange = max(counted.values()), [item for items in unknown.values() for item in items]
    whose = "no user has" if path.is_dir() else "the history does not have"
    text = f"{whose} {least} items of the catalogue yet (it has {longest}"
    return f"{text}; {len(strange)} items such as '{strange[0]}' are not in the catalogue)" if strange else f"{text})"
