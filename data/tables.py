"""Tables of histories: named or numbered columns of text, JSON lines and Parquet. Errors name the file and the line."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from data.file_forms import Columns, Format, delimiter_of
from data.interactions import Codes, Events
from fedmoe.data_settings import ErrorOrDrop
from fedmoe.errors import FedMoEError, nearest

# How tables say that there is no value: R, pandas, SQL dumps.
_MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None", "\\N"]


def read_table(path: Path, content: bytes, form: Format, columns: Columns, incomplete: ErrorOrDrop = "error") -> Events:
    """Return the interactions of a table of the form ``inter``, ``csv``, ``jsonl`` or ``parquet``.

    incomplete: what becomes of rows without a user, an item or a time.

    Raises FedMoEError if it is damaged or lacks a column, for a value that is not a number, and for incomplete rows
    unless they are to be dropped.
    """
    first_line = 1
    if form == "parquet":
        table = _read_parquet(path, content, columns)
    elif form == "jsonl":
        table = _read_json(path, content, columns)
    else:
        table = _read_delimited(path, content, form, columns)
        first_line = 1 if columns.numbered else 2
    lines = np.arange(len(table)) + first_line
    gaps = np.zeros(len(table), np.bool_)
    for name in table.column_names:
        missing = pc.is_null(table.column(name), nan_is_null=True).to_numpy()
        if missing.any() and incomplete == "error":
            raise FedMoEError(
                f"{path}, line {lines[np.argmax(missing)]}: column '{name}' is empty or says NA, as in "
                f"{np.count_nonzero(missing)} of {len(table)} rows - fill it, or set data.incomplete=drop to leave "
                "such rows out"
            )
        gaps |= missing
    if gaps.any():
        table, lines = table.filter(pa.array(~gaps)), lines[~gaps]
    return _from_table(path, table, columns, lines)._replace(left_out=int(np.count_nonzero(gaps)))


def decoded(path: Path, content: bytes) -> str:
    """Return a file's text. Raises FedMoEError with the line that is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FedMoEError(f"{path}, line {line}: is not UTF-8 text - set data.data_format, or convert it") from None


def _read_delimited(path: Path, content: bytes, form: Format, columns: Columns) -> pa.Table:
    """Read the needed columns of a ``csv`` or ``inter`` file; ids as strings."""
    content = content.rstrip(b"\r\n") + b"\n"
    first = decoded(path, content[: content.index(b"\n")]).rstrip("\r")
    delimiter = "\t" if form == "inter" else delimiter_of(first) or ","
    heads = [head.strip().strip('"') for head in first.split(delimiter)]
    if columns.numbered:
        heads = [str(number) for number in range(1, len(heads) + 1)]
    # A typed header 'user_id:token' names the column 'user_id'.
    names = [head.partition(":")[0] for head in heads] if form == "inter" else heads
    wanted = _present_columns(path, names, columns)
    types: dict[str, pa.DataType] = {columns.user: pa.string(), columns.item: pa.string()}
    if columns.time is not None and columns.time_format is not None:
        types[columns.time] = pa.string()
    header = 0 if columns.numbered else 1
    parse = pyarrow.csv.ParseOptions(
        delimiter=delimiter, quote_char=False if form == "inter" else '"', ignore_empty_lines=False
    )
    convert = pyarrow.csv.ConvertOptions(
        include_columns=wanted, column_types=types, null_values=_MISSING, strings_can_be_null=True
    )
    reading = partial(pyarrow.csv.ReadOptions, column_names=names, skip_rows=header)
    try:
        return pyarrow.csv.read_csv(pa.BufferReader(content), reading(), parse, convert)
    except pa.ArrowInvalid:
        try:  # once more in one thread: only then do errors tell the line
            return pyarrow.csv.read_csv(pa.BufferReader(content), reading(use_threads=False), parse, convert)
        except pa.ArrowInvalid as error:
            raise _damaged(path, form, error) from error


def _damaged(path: Path, form: Format, error: pa.ArrowInvalid) -> FedMoEError:
    reason = " ".join(str(error).split())
    line = re.search(r"Row #(\d+)", reason)
    row = re.search(r"in row (\d+)", reason)  # JSON's rows are counted from 0
    number = int(line[1]) if line else int(row[1]) + 1 if row else None
    place = f"{path}" if number is None else f"{path}, line {number}"
    return FedMoEError(f"{place}: cannot be read as {form} ({reason[:160]}) - correct the line")


def _read_json(path: Path, content: bytes, columns: Columns) -> pa.Table:
    decoded(path, content)
    try:
        table = pyarrow.json.read_json(pa.BufferReader(content), pyarrow.json.ReadOptions(use_threads=False))
    except pa.ArrowInvalid as error:
        raise _damaged(path, "jsonl", error) from error
    return table.select(_present_columns(path, table.column_names, columns))


def _read_parquet(path: Path, content: bytes, columns: Columns) -> pa.Table:
    try:
        names = pyarrow.parquet.read_schema(pa.BufferReader(content)).names
        wanted = _present_columns(path, names, columns)
        return pyarrow.parquet.read_table(pa.BufferReader(content), columns=wanted)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FedMoEError(f"{path}: cannot be read as parquet ({reason}) - write the file again") from error


def _present_columns(path: Path, names: list[str], columns: Columns) -> list[str]:
    """Return the names of the needed columns, or say which is missing and what there is."""
    wanted = {"user_column": columns.user, "item_column": columns.item}
    if columns.time is not None:
        wanted["time_column"] = columns.time
    if missing := {key: name for key, name in wanted.items() if name not in names}:
        lacks = ", ".join(f"'{name}'{nearest(name, names)}" for name in missing.values())
        remedy = ", the last one to null for the order of the file" if "time_column" in missing else ""
        keys = " and ".join(f"data.{key}" for key in missing)
        raise FedMoEError(
            f"{path}: has no column {lacks}; it has {', '.join(names)[:200]} - set {keys} to what is meant{remedy}"
        )
    return list(wanted.values())


def _from_table(path: Path, table: pa.Table, columns: Columns, lines: NDArray[np.integer[Any]]) -> Events:
    users, items = (_ids(path, table, name, lines) for name in (columns.user, columns.item))
    if columns.time is None:
        return Events(users, items, None)
    return Events(users, items, _times(path, table, columns.time, columns.time_format, lines))


def _times(
    path: Path, table: pa.Table, name: str, time_format: str | None, lines: NDArray[np.integer[Any]]
) -> NDArray[Any]:
    """Return a column of times as numbers: dates in microseconds, numbers as they are."""
    column = table.column(name).combine_chunks()
    if time_format is not None:
        return _parsed_times(path, column, name, time_format, lines)
    if pa.types.is_time(column.type) or pa.types.is_boolean(column.type) or pa.types.is_duration(column.type):
        raise FedMoEError(
            f"{path}: column '{name}' is {column.type}, which puts no two days in order - set data.time_column to a "
            "column of dates or numbers, or to null for the order of the file"
        )
    if pa.types.is_temporal(column.type):
        column = pc.cast(column, pa.timestamp("us"), safe=False).cast(pa.int64())
    otherwise = ", or a date such as 2024-05-31 12:00:00; set data.time_format to how it is written, as %d/%m/%Y"
    return numbers(path, column, name, lines, otherwise)


def _parsed_times(
    path: Path, column: pa.Array, name: str, time_format: str, lines: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Return times written in a format of ``strptime`` in microseconds; those without a zone are taken as UTC."""
    found = codes(column)
    parsed = np.zeros(len(found.names), np.int64)
    for place, text in enumerate(found.names.tolist()):
        try:
            moment = datetime.strptime(text.strip(), time_format)
        except ValueError as error:
            line = lines[np.argmax(found.rows == place)]
            raise FedMoEError(f"{path}, line {line}: {name}: {error} - correct data.time_format") from None
        parsed[place] = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)
    times: NDArray[np.int64] = parsed[found.rows]
    return times


def _ids(path: Path, table: pa.Table, name: str, lines: NDArray[np.integer[Any]]) -> Codes:
    column = table.column(name).combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if pa.types.is_floating(column.type):  # what pandas makes of integers with gaps
        try:
            column = pc.cast(column, pa.int64())
        except pa.ArrowInvalid:
            raise FedMoEError(f"{path}: column '{name}' holds fractions - ids are integers or strings") from None
    if not any(check(column.type) for check in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)):
        raise FedMoEError(f"{path}: column '{name}' is {column.type} - ids are integers or strings")
    found = codes(column)
    names = np.char.strip(found.names)
    if (names == "").any():
        line = lines[np.argmax((names == "")[found.rows])]
        raise FedMoEError(f"{path}, line {line}: column '{name}' is blank - every row needs a user and an item")
    distinct, place = np.unique(names, return_inverse=True)
    return Codes(distinct, place[found.rows])


def codes(column: pa.Array) -> Codes:
    """Return a column of ids as its distinct names and each row's place among them."""
    encoded = column.dictionary_encode()
    names = encoded.dictionary.cast(pa.large_string()).to_numpy(zero_copy_only=False).astype(np.str_)
    return Codes(names, encoded.indices.to_numpy())


def numbers(
    path: Path, column: pa.Array, name: str, lines: NDArray[np.integer[Any]], otherwise: str = ""
) -> NDArray[Any]:
    """Return a column as finite numbers; integers stay integers. otherwise: what else it may be, for the error."""
    if not pa.types.is_integer(column.type):
        try:
            column = pc.cast(column, pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            row, value = _first_non_number(column)
            raise FedMoEError(
                f"{path}, line {lines[row]}: {name} is '{value}' - it must be a number{otherwise}"
            ) from None
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
