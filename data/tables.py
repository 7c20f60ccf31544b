"""Tables of histories: named or numbered columns of text, JSON lines and Parquet. Errors name the file and the line."""

from __future__ import annotations

import re
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
from fedmoe.errors import FedMoEError, nearest


def read_table(path: Path, content: bytes, form: Format, columns: Columns) -> Events:
    """Return the interactions of a table of the form ``inter``, ``csv``, ``jsonl`` or ``parquet``.

    Raises FedMoEError if it is damaged or lacks a column, and for a value that is empty or not a number.
    """
    if form == "parquet":
        return _from_table(path, _read_parquet(path, content, columns), columns, first_line=1)
    if form == "jsonl":
        return _from_table(path, _read_json(path, content, columns), columns, first_line=1)
    first_line = 1 if columns.numbered else 2
    return _from_table(path, _read_delimited(path, content, form, columns), columns, first_line)


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
    header = 0 if columns.numbered else 1
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(content),
            # One thread: only then do errors tell the line.
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=header, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter, quote_char=False if form == "inter" else '"', ignore_empty_lines=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=types, null_values=[""], strings_can_be_null=True
            ),
        )
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
    return Events(users, items, numbers(path, column, columns.time, lines))


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
    found = codes(column)
    names = np.char.strip(found.names)
    if (names == "").any():
        line = lines[np.argmax((names == "")[found.rows])]
        raise FedMoEError(f"{path}, line {line}: column '{name}' is blank - every row needs a user and an item")
    distinct, place = np.unique(names, return_inverse=True)
    return Codes(distinct, place[found.rows])


def _without_gaps(path: Path, table: pa.Table, name: str, lines: NDArray[np.integer[Any]]) -> pa.Array:
    column = table.column(name).combine_chunks()
    if column.null_count:
        line = lines[np.argmax(column.is_null().to_numpy(zero_copy_only=False))]
        raise FedMoEError(f"{path}, line {line}: column '{name}' is empty - fill it or remove the row")
    return column


def codes(column: pa.Array) -> Codes:
    """Return a column of ids as its distinct names and each row's place among them."""
    encoded = column.dictionary_encode()
    names = encoded.dictionary.cast(pa.large_string()).to_numpy(zero_copy_only=False).astype(np.str_)
    return Codes(names, encoded.indices.to_numpy())


def numbers(path: Path, column: pa.Array, name: str, lines: NDArray[np.integer[Any]]) -> NDArray[Any]:
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
