"""Readers for files of histories, without a Python loop over lines. Every error names the file and the line.

``sequences``: ``user item item ...`` a line, oldest first; the lines of one user are joined in the file's order, so
that ``user item`` a line works as well. ``ratings``: ``user item rating time`` a line. Both are separated by blanks or
tabs. ``inter``: tab-separated with a typed header (``user_id:token``). ``csv``, ``parquet``: named columns.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from data.interactions import Codes
from fedmoe.errors import FedMoEError, nearest

Format = Literal["auto", "sequences", "ratings", "inter", "csv", "parquet"]
_ENDINGS: dict[str, Format] = {".inter": "inter", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_SNIFFED_LINES = 20
_LEAST_TIME = 1e8  # a fourth number as large as this is a time in seconds (1973 or later), not an item


class Columns(NamedTuple):
    """Names of the columns of a table; ``time`` None keeps the order of the file."""

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = "timestamp"


class Events(NamedTuple):
    """One row per interaction, in the file's order."""

    users: Codes
    items: Codes
    times: NDArray[Any] | None


def read_events(path: Path, form: Format = "auto", columns: Columns | None = None) -> Events:
    """Read a file of histories in one of the formats above.

    Args:
        path: the file.
        form: its format; ``auto`` goes by the ending, and for other endings by the first lines: ``ratings`` if each has
            exactly four numbers of which the fourth is large, else ``sequences``.
        columns: names of the columns of ``inter``, ``csv`` and ``parquet``.

    Raises:
        FedMoEError: the file is missing, empty, damaged, or lacks a column; a value is empty or not a number.
    """
    if not path.is_file():
        raise FedMoEError(f"{path}: no such file - correct data.data_file or data.data_dir")
    columns = columns or Columns()
    if form == "auto":
        form = _ENDINGS.get(path.suffix.lower()) or _sniff(path)
    if form == "sequences":
        events = _read_sequences(path)
    elif form == "ratings":
        events = rating_events(path, path.read_bytes())
    elif form == "parquet":
        events = _from_table(path, _read_parquet(path, columns), columns, first_line=1)
    else:
        events = _from_table(path, _read_delimited(path, form, columns), columns, first_line=2)
    if not len(events.users.rows):
        raise FedMoEError(f"{path}: the file has no interactions - was it cut off?")
    return events


# Lines of words


class _Words(NamedTuple):
    """The words of a file's lines that are not empty: line i has ``words[starts[i]:starts[i + 1]]``."""

    words: pa.LargeStringArray
    starts: NDArray[np.integer[Any]]
    line_numbers: NDArray[np.intp]


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FedMoEError(f"{path}, line {line}: is not UTF-8 text - set data.data_format, or convert it") from None


def split_words(path: Path, content: bytes) -> _Words:
    """Split text into lines and words; ``path`` is for errors alone."""
    lines = pc.utf8_trim_whitespace(pa.array(_decode(path, content).split("\n"), pa.large_string()))
    filled = np.flatnonzero(pc.not_equal(lines, "").to_numpy(zero_copy_only=False))
    lists = pc.utf8_split_whitespace(lines.take(pa.array(filled)))
    return _Words(lists.values, lists.offsets.to_numpy(), filled + 1)


def _sniff(path: Path) -> Format:
    with path.open("rb") as file:
        lines = [line.split() for line in file.readlines(1 << 20)]
    first = [words for words in lines if words][:_SNIFFED_LINES]
    return "ratings" if first and all(map(_is_rating, first)) else "sequences"


def _is_rating(words: list[bytes]) -> bool:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    return len(numbers) == 4 and numbers[3] >= _LEAST_TIME


def _read_sequences(path: Path) -> Events:
    words, starts, line_numbers = split_words(path, path.read_bytes())
    lengths = np.diff(starts)
    if (lengths < 2).any():
        line = line_numbers[np.argmax(lengths < 2)]
        raise FedMoEError(f"{path}, line {line}: has a user but no item - a line is 'user item item ...'")
    is_item = np.ones(len(words), np.bool_)
    is_item[starts[:-1]] = False
    users = _codes(words.take(pa.array(starts[:-1])))
    return Events(Codes(users.names, np.repeat(users.rows, lengths - 1)), _codes(words.filter(pa.array(is_item))), None)


def rating_events(path: Path, content: bytes) -> Events:
    """Return the interactions of lines ``user item rating time``; ``path`` is for errors alone."""
    words, starts, line_numbers = split_words(path, content)
    lengths = np.diff(starts)
    if (lengths != 4).any():
        bad = int(np.argmax(lengths != 4))
        raise FedMoEError(
            f"{path}, line {line_numbers[bad]}: has {lengths[bad]} fields - a line is 'user item rating time'"
        )
    rows = np.arange(len(lengths)) * 4
    users, items, ratings, times = (words.take(pa.array(rows + column)) for column in range(4))
    _numbers(path, ratings, "rating", line_numbers)
    return Events(_codes(users), _codes(items), _numbers(path, times, "time", line_numbers))


# Tables


def _read_delimited(path: Path, form: Format, columns: Columns) -> pa.Table:
    """Read the needed columns of a ``csv`` or ``inter`` file; ids as strings."""
    delimiter = "\t" if form == "inter" else ","
    content = path.read_bytes().rstrip(b"\r\n") + b"\n"
    header = _decode(path, content[: content.index(b"\n")]).lstrip("\ufeff").rstrip("\r").split(delimiter)
    heads = [head.strip().strip('"') for head in header]
    # A typed header 'user_id:token' names the column 'user_id'.
    names = [head.partition(":")[0] for head in heads] if form == "inter" else heads
    wanted = _present_columns(path, names, columns)
    types: dict[str, pa.DataType] = {columns.user: pa.string(), columns.item: pa.string()}
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(content),
            # One thread: only then do errors tell the line.
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, quote_char=False if form == "inter" else '"', ignore_empty_lines=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=types, null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        line = re.search(r"Row #(\d+)", reason)
        place = f"{path}, line {line[1]}" if line else f"{path}"
        raise FedMoEError(f"{place}: cannot be read as {form} ({reason[:160]}) - correct the line") from error


def _read_parquet(path: Path, columns: Columns) -> pa.Table:
    try:
        names = pyarrow.parquet.read_schema(path).names
        return pyarrow.parquet.read_table(path, columns=_present_columns(path, names, columns))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FedMoEError(f"{path}: cannot be read as parquet ({reason}) - write the file again") from error


def _present_columns(path: Path, names: list[str], columns: Columns) -> list[str]:
    """Return the names of the needed columns, or say which is missing and what there is."""
    wanted = {"user_column": columns.user, "item_column": columns.item}
    if columns.time is not None:
        wanted["time_column"] = columns.time
    for key, name in wanted.items():
        if name not in names:
            remedy = ", or to null for the order of the file" if key == "time_column" else ""
            raise FedMoEError(
                f"{path}: has no column '{name}'{nearest(name, names)}; it has {', '.join(names)[:200]} "
                f"- set data.{key} to one of them{remedy}"
            )
    return list(wanted.values())


def _from_table(path: Path, table: pa.Table, columns: Columns, first_line: int) -> Events:
    lines = np.arange(len(table)) + first_line
    users, items = (_ids(path, table, name, lines) for name in (columns.user, columns.item))
    if columns.time is None:
        return Events(users, items, None)
    column = _without_gaps(path, table, columns.time, lines)
    if pa.types.is_temporal(column.type):
        column = pc.cast(column, pa.timestamp("us"), safe=False).cast(pa.int64())
    return Events(users, items, _numbers(path, column, columns.time, lines))


def _ids(path: Path, table: pa.Table, name: str, lines: NDArray[np.integer[Any]]) -> Codes:
    column = _without_gaps(path, table, name, lines)
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_floating(column.type):  # what pandas makes of integers with gaps
        try:
            column = pc.cast(column, pa.int64())
        except pa.ArrowInvalid:
            raise FedMoEError(f"{path}: column '{name}' holds fractions - ids are integers or strings") from None
    if not any(check(column.type) for check in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)):
        raise FedMoEError(f"{path}: column '{name}' is {column.type} - ids are integers or strings")
    codes = _codes(column)
    names = np.char.strip(codes.names)
    if (names == "").any():
        line = lines[np.argmax((names == "")[codes.rows])]
        raise FedMoEError(f"{path}, line {line}: column '{name}' is blank - every row needs a user and an item")
    distinct, place = np.unique(names, return_inverse=True)
    return Codes(distinct, place[codes.rows])


def _without_gaps(path: Path, table: pa.Table, name: str, lines: NDArray[np.integer[Any]]) -> pa.Array:
    column = table.column(name).combine_chunks()
    if column.null_count:
        line = lines[np.argmax(column.is_null().to_numpy(zero_copy_only=False))]
        raise FedMoEError(f"{path}, line {line}: column '{name}' is empty - fill it or remove the row")
    return column


# Columns


def _codes(column: pa.Array) -> Codes:
    encoded = column.dictionary_encode()
    names = encoded.dictionary.cast(pa.large_string()).to_numpy(zero_copy_only=False).astype(np.str_)
    return Codes(names, encoded.indices.to_numpy())


def _numbers(path: Path, column: pa.Array, name: str, lines: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """Return a column as finite numbers; integers stay integers."""
    if not pa.types.is_integer(column.type):
        try:
            column = pc.cast(column, pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            row, value = _first_non_number(column)
            raise FedMoEError(f"{path}, line {lines[row]}: {name} is '{value}' - it must be a number") from None
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    finite = np.isfinite(numbers)
    if not finite.all():
        raise FedMoEError(f"{path}, line {lines[np.argmin(finite)]}: {name} is not finite - it must be a number")
    return numbers


def _first_non_number(column: pa.Array) -> tuple[int, str]:
    for row, value in enumerate(column.to_pylist()):
        try:
            float(value)
        except (TypeError, ValueError):
            return row, str(value)
    return 0, str(column.type)
