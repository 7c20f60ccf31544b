"""Try a data set of one's own out: ``python -m data.check NAME [key=value ...]``.

NAME is what ``data.dataset`` takes, ``my_module:MyData``; key=value are its arguments. One line for each demand says
whether it holds, and what was seen. Exit status: 0 all hold, 1 one fails, 2 the name or the arguments are wrong.
"""

from __future__ import annotations

import builtins
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data.interactions import Codes, Events
from data.own_data import DATA_SETS, OwnData
from data.registry import load_dataset
from fedmoe.check.command import Broken, Demands, Finding, findings, global_chance, run
from fedmoe.loading import settings_from

USAGE = "usage: python -m data.check NAME [key=value ...], e.g. my_module:MyData file=ratings.txt"
NO_NAMES = ("", "nan", "NaN", "None", "null")  # what a missing id becomes when it is read as text
NO_TIME = np.iinfo(np.int64).min  # NumPy's NaT as a number


class Subject:
    """A data set by name and parameters; a fresh object for each reading."""

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        self.name, self.parameters = name, parameters
        self.make: Callable[[], OwnData] = lambda: DATA_SETS.build(name, parameters)
        self._events: Events | None = None

    @property
    def events(self) -> Events:
        """What was read, once for all demands."""
        if self._events is None:
            self._events = self.make().events()
        return self._events


def main(words: Sequence[str]) -> int:
    """Check the data set that the words name, print what was found and return the exit status."""
    return run(words, USAGE, data_findings)


def data_findings(name: str, parameters: Mapping[str, Any]) -> list[Finding]:
    """Try all demands. FedMoEError: the data set cannot be made."""
    subject = Subject(name, parameters)
    subject.make()
    return findings(FIRST, THEN, subject)


def _files(subject: Subject) -> str:
    files = subject.make().files()
    if not isinstance(files, list) or not all(isinstance(path, Path) for path in files):
        raise Broken(f"files() returns {files!r}: return a list of pathlib.Path")
    if not files:
        raise Broken("files() names none: the data set would not be read anew when its content changes")
    for path in files:
        if not path.is_file():
            raise Broken(f"{path} is no file: correct the argument that names it")
    return ", ".join(map(str, files))


def _reads(subject: Subject) -> str:
    if not isinstance(subject.events, Events):
        raise Broken(f"events() returns {type(subject.events).__name__}: return data.interactions.Events")
    rows = len(subject.events.users.rows)
    if not rows:
        raise Broken("events() returns no row")
    return f"{rows} rows"


def _ids(subject: Subject) -> str:
    events = subject.events
    users, items = events.users, events.items
    for what in ("users", "items"):
        codes = getattr(events, what)
        if not isinstance(codes, Codes):
            raise Broken(
                f"{what} are {type(codes).__name__}: data.interactions.Codes(*np.unique(ids, return_inverse=True))"
            )
        names, rows = np.asarray(codes.names), np.asarray(codes.rows)
        if names.dtype.kind != "U":
            raise Broken(f"names of {what} are {names.dtype}: make them strings with astype(str)")
        if len(np.unique(names)) != len(names):
            raise Broken(f"names of {what} occur twice: np.unique with return_inverse makes them distinct")
        if absent := [name for name in NO_NAMES if (names == name).any()]:
            raise Broken(f"one of the {what} is called '{absent[0]}', which a missing id becomes: leave such rows out")
        if rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(names):
            raise Broken(f"rows of {what} are not indices of their {len(names)} names")
    if len(users.rows) != len(items.rows):
        raise Broken(f"{len(users.rows)} rows of users and {len(items.rows)} of items: one of each an interaction")
    return f"{len(users.names)} users, {len(items.names)} items, distinct names"


def _times(subject: Subject) -> str:
    events = subject.events
    if events.times is None:
        return "none: each user's rows must be in the order of time"
    times = np.asarray(events.times)
    if len(times) != len(events.users.rows):
        raise Broken(f"{len(times)} times for {len(events.users.rows)} rows")
    if times.dtype.kind not in "iuf":
        raise Broken(f"times are {times.dtype}: make them numbers, as with astype('datetime64[s]').astype(np.int64)")
    if not np.isfinite(times).all() or (times.dtype.kind == "i" and (times == NO_TIME).any()):
        raise Broken("a time is missing (NaN or NaT): leave such rows out")
    if len(times) > 1 and (times == times[0]).all():
        raise Broken("all times are equal: return None where the rows are in the order of time")
    order = np.lexsort((times, events.users.rows))
    same = (np.diff(events.users.rows[order]) == 0) & (np.diff(times[order]) == 0)
    return f"from {times.min():g} to {times.max():g}; {same.mean():.0%} of a user's neighbours are at the same time"


def _again(subject: Subject) -> str:
    found = []
    for chance in (0, 1):
        with global_chance(chance):
            found.append(subject.make().events())
    for what, one, other in zip(Events._fields, *found, strict=True):
        parts = zip(one, other, strict=True) if isinstance(one, Codes) else [(one, other)]
        if not all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in parts):
            raise Broken(f"{what} differ when they are read again: all clients must see the same data, so draw nothing")
    return "what is read follows from the files"


def _opened(subject: Subject) -> str:
    data = subject.make()
    named = {path.resolve() for path in data.files()}
    with _watched() as opened:
        data.events()
    if others := sorted(path for path in opened if path not in named):
        raise Broken(f"{others[0]} is read and not named by files(): a change of it would go unnoticed")
    return "no other file is read"


@contextmanager
def _watched() -> Iterator[set[Path]]:
    """Yield what fills with the files that are opened by Python within the block, but for those of Python itself."""
    opened: set[Path] = set()
    plain = io.open
    own = tuple(str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix))

    def watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | Path) and "r" in mode:
            path = Path(file).resolve()
            if path.suffix not in (".py", ".pyc") and not str(path).startswith((*own, "/proc", "/sys", "/usr", "/etc")):
                opened.add(path)
        return plain(file, mode, *args, **kwargs)

    builtins.open = io.open = watched
    try:
        yield opened
    finally:
        builtins.open = io.open = plain


def _histories(subject: Subject) -> str:
    named = {"dataset": subject.name, "dataset_parameters": dict(subject.parameters)}
    with tempfile.TemporaryDirectory() as cache:
        return load_dataset(settings_from({"data": named}), Path(cache)).reading


FIRST: Demands[Subject] = {"files are there": _files, "rows are read": _reads, "ids": _ids, "times": _times}
THEN: Demands[Subject] = {
    "two readings are equal": _again,
    "all files are named": _opened,
    "histories": _histories,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
