"""Readers for files of histories, without a Python loop over lines. Every error names the file and the line.

``sequences``: ``user item item ...`` a line, oldest first; the lines of one user are joined in the file's order, so
that ``user item`` a line works as well. ``ratings``: ``user item rating time`` a line. Both are separated by blanks or
tabs, ``ratings`` by ``::`` too. ``data.tables`` reads the forms with columns, ``data.file_forms`` tells all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.file_forms import Columns, Format, content_of, form_of
from data.interactions import Codes, Events
from data.tables import codes, decoded, numbers, read_table
from fedmoe.data_settings import ErrorOrDrop
from fedmoe.errors import FedMoEError


def read_events(
    path: Path, form: Format = "auto", columns: Columns | None = None, incomplete: ErrorOrDrop = "error"
) -> Events:
    """Read a file of histories; gzip's are unpacked.

    Args:
        path: the file.
        form: its format; ``auto``: told by its content and ending, see ``data.file_forms.form_of``.
        columns: names of the columns of ``inter``, ``csv``, ``jsonl`` and ``parquet``.
        incomplete: what becomes of a table's rows without a user, an item or a time.

    Raises:
        FedMoEError: the file is missing, empty, damaged, ambiguous, or lacks a column; a value is empty or no number.
    """
    columns, content = columns or Columns(), content_of(path)
    form = form_of(path, content, columns) if form == "auto" else form
    if form == "sequences":
        events = _read_sequences(path, content)
    elif form == "ratings":
        events = _read_ratings(path, content)
    else:
        events = read_table(path, content, form, columns, incomplete)
    if not len(events.users.rows):
        raise FedMoEError(f"{path}: the file has no interactions - was it cut off?")
    return events._replace(form=form)


class _Words(NamedTuple):
    """The words of a file's lines that are not empty: line i has ``words[starts[i]:starts[i + 1]]``."""

    words: pa.LargeStringArray
    starts: NDArray[np.integer[Any]]
    line_numbers: NDArray[np.intp]


def split_words(path: Path, content: bytes) -> _Words:
    """Split text into lines and words; ``path`` is for errors alone."""
    lines = pc.utf8_trim_whitespace(pa.array(decoded(path, content).split("\n"), pa.large_string()))
    filled = np.flatnonzero(pc.not_equal(lines, "").to_numpy(zero_copy_only=False))
    lists = pc.utf8_split_whitespace(lines.take(pa.array(filled)))
    return _Words(lists.values, lists.offsets.to_numpy(), filled + 1)


def _read_sequences(path: Path, content: bytes) -> Events:
    words, starts, line_numbers = split_words(path, content)
    lengths = np.diff(starts)
    if (lengths < 2).any():
        line = line_numbers[np.argmax(lengths < 2)]
        raise FedMoEError(f"{path}, line {line}: has a user but no item - a line is 'user item item ...'")
    is_item = np.ones(len(words), np.bool_)
    is_item[starts[:-1]] = False
    users = codes(words.take(pa.array(starts[:-1])))
    return Events(Codes(users.names, np.repeat(users.rows, lengths - 1)), codes(words.filter(pa.array(is_item))), None)


def _read_ratings(path: Path, content: bytes) -> Events:
    words, starts, line_numbers = split_words(path, content.replace(b"::", b"\t"))
    lengths = np.diff(starts)
    if (lengths != 4).any():
        bad = int(np.argmax(lengths != 4))
        raise FedMoEError(
            f"{path}, line {line_numbers[bad]}: has {lengths[bad]} fields - a line is 'user item rating time'"
        )
    rows = np.arange(len(lengths)) * 4
    users, items, ratings, times = (words.take(pa.array(rows + column)) for column in range(4))
    numbers(path, ratings, "rating", line_numbers)
    return Events(codes(users), codes(items), numbers(path, times, "time", line_numbers))
