"""A table of items: a column of ids, and what the others hold: paths of pictures, attributes, or texts.

What a column holds is told by its content, or by ``data.item_columns``. Paths end as pictures do. Attributes are what
many items have in common: numbers, and words or lists (``Drama|Crime``) whose parts occur three times on average. The
rest is text. A column that is empty, or says the same of all items, says nothing and is left out.

A table of interactions, which has a column of users, may hold what is known of the items too: each item counts once,
and columns that differ between its rows are not of the item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from data.file_forms import content_of, delimiter_of
from data.tables import decoded
from fedmoe.data_settings import DataSettings, Holds
from fedmoe.errors import FedMoEError, nearest

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
LEAST_SHARED = 3.0  # items that have a part of an attribute, on average
PARTS = 8  # a column of many numbers is cut into so many parts of the same number of items
LEAST_FOUND = 0.5  # of the ids, or the items where those are fewer; and of the pictures

Attributes = tuple[str, ...]


@dataclass(frozen=True)
class ItemTable:
    """What a table says of the items of a catalogue.

    Attributes:
        texts: ``[num_items + 1]``, the columns of text one after the other, "" where there is none.
        attributes: ``[num_items + 1]``, each as ``column=value``.
        pictures: ``[num_items + 1]``, files that are there; None for an item without one.
        columns: what each column holds.
        reading: one line that says so.
    """

    texts: list[str]
    attributes: list[Attributes]
    pictures: list[Path | None]
    columns: Mapping[str, Holds]
    reading: str

    @property
    def titles(self) -> list[str]:
        """Text and attributes of each item in one line, for people and sentence encoders."""
        values = [", ".join(each.partition("=")[2] for each in own) for own in self.attributes]
        return [", ".join(filter(None, both)) for both in zip(self.texts, values, strict=True)]


def read_items(path: Path, item_ids: Sequence[str], settings: DataSettings) -> ItemTable:
    """Read a table (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, RecBole's ``.item``) of a catalogue's items.

    item_ids: ``[num_items + 1]``, the catalogue's ids; entry 0 is the padding.

    Raises FedMoEError if it cannot be read, has no column of ids, names an item twice, or is of other items.
    """
    left_out: list[str] = []
    columns = read_columns(path)
    name = _id_column(path, columns, settings.item_column)
    if settings.user_column in columns:
        columns, left_out = _once_each(columns, name)
    rows = _rows_of(path, columns.pop(name), item_ids)
    columns = {other: [values[row] if row >= 0 else "" for row in rows] for other, values in columns.items()}
    if unknown := set(settings.item_columns) - set(columns):
        named = sorted(unknown)[0]
        raise FedMoEError(f"data.item_columns: {path} has no column '{named}'{nearest(named, columns)}")
    holds = {column: settings.item_columns.get(column) or _told(values) for column, values in columns.items()}
    by_kind = {kind: [column for column in columns if holds[column] == kind] for kind in ("text", "picture")}
    if len(by_kind["picture"]) > 1:
        first, second = by_kind["picture"][:2]
        raise FedMoEError(
            f"{path}: columns '{first}' and '{second}' both hold pictures - set data.item_columns.{second}=ignore"
        )
    said = [columns[column] for column in by_kind["text"]]
    texts = [", ".join(filter(None, (cells[row] for cells in said))) for row in range(len(item_ids))]
    parts = [_attributes(column, columns[column]) for column in columns if holds[column] == "attributes"]
    pictures = [_pictures(path, column, columns[column], settings) for column in by_kind["picture"]]
    none: list[Any] = [None] * len(item_ids)
    known = int((rows >= 0).sum())
    kinds = [f"{column}: {kind}" for column, kind in holds.items()]
    differing = f"; columns that are not of the items: {', '.join(left_out)}" if left_out else ""
    return ItemTable(
        texts,
        [tuple(part for column in parts for part in column[row]) for row in range(len(item_ids))],
        pictures[0] if pictures else none,
        holds,
        f"{path.name} has {known} of the {len(item_ids) - 1} items ({', '.join(kinds)}{differing})",
    )


def read_columns(path: Path) -> dict[str, list[str]]:
    """Return the cells of each column as strings, "" where a cell is empty; a list's parts are joined by ``|``."""
    content = content_of(path)
    try:
        if content[:4] == b"PAR1":
            table = pyarrow.parquet.read_table(pa.BufferReader(content))
        elif content.lstrip()[:1] == b"{":
            decoded(path, content)
            table = pyarrow.json.read_json(pa.BufferReader(content))
        else:
            table = _delimited(path, content)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FedMoEError(f"{path}: the table of items cannot be read ({reason}) - correct it") from error
    return {name: [_cell(value) for value in table.column(name).to_pylist()] for name in table.column_names}


def _delimited(path: Path, content: bytes) -> pa.Table:
    first = decoded(path, content).partition("\n")[0].rstrip("\r")
    delimiter = delimiter_of(first) or ","
    names = [head.strip().strip('"') for head in first.split(delimiter)]
    if typed := all(":" in name for name in names):  # RecBole's item_id:token
        names = [name.partition(":")[0] for name in names]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise FedMoEError(f"{path}: two columns are called '{twice}' - rename one")
    return pyarrow.csv.read_csv(
        pa.BufferReader(content),
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, quote_char=False if typed else '"', newlines_in_values=not typed
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "|".join(_cell(part) for part in value)
    if isinstance(value, float) and value.is_integer():  # what pandas makes of integers with gaps
        return str(int(value))
    return " ".join(str(value).split())


def _id_column(path: Path, columns: Mapping[str, Any], wanted: str) -> str:
    names = dict.fromkeys((wanted, "item_id", "id"))
    for name in names:
        if name in columns:
            return name
    raise FedMoEError(
        f"{path}: has no column {' or '.join(map(repr, names))}{nearest(wanted, columns)}; it has "
        f"{', '.join(columns)[:200]} - call the column of ids as data.item_column says"
    )


def _once_each(columns: Mapping[str, list[str]], name: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return a table's columns with one row for each item of the column ``name``, and the columns that are left out."""
    first: dict[str, int] = {}
    of_item = [first.setdefault(item, row) for row, item in enumerate(columns[name])]
    same = {
        other: all(cell == cells[row] for cell, row in zip(cells, of_item, strict=True))
        for other, cells in columns.items()
    }
    kept = {other: [cells[row] for row in first.values()] for other, cells in columns.items() if same[other]}
    return kept, [other for other in columns if not same[other]]


def _rows_of(path: Path, ids: Sequence[str], item_ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return ``[num_items + 1]``, the row of each item of the catalogue, or -1."""
    row_of: dict[str, int] = {}
    for row, item in enumerate(ids):
        if item and row_of.setdefault(item, row) != row:
            raise FedMoEError(f"{path}: item {item} is in row {row_of[item] + 1} and in row {row + 1} - keep one")
    rows = np.array([row_of.get(item, -1) if item else -1 for item in item_ids], np.int64)
    found = int((rows >= 0).sum())
    if found < LEAST_FOUND * min(len(row_of), len(item_ids) - 1) or not found:
        raise FedMoEError(
            f"{path}: only {found} of its {len(row_of)} items are among the {len(item_ids) - 1} of the histories - "
            "are these another data set's, or spelt otherwise?"
        )
    return rows


def _told(cells: Sequence[str]) -> Holds:
    """Return what a column holds, by its content."""
    filled = [cell for cell in cells if cell]
    if filled and all(cell.lower().endswith(PICTURE_ENDINGS) for cell in filled):
        return "picture"
    if len(set(filled)) < 2:
        return "ignore"
    if all(map(_is_number, filled)):
        return "attributes"
    shared = Counter(part for cell in filled for part in _parts(cell))
    return "attributes" if shared.total() >= LEAST_SHARED * len(shared) else "text"


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def _parts(cell: str) -> Attributes:
    """Return the parts of a list such as ``Drama|Crime`` or ``Drama, Crime``, sorted."""
    separator = next((mark for mark in "|;," if mark in cell), "|")
    return tuple(sorted({part.strip() for part in cell.split(separator)} - {""}))


def _attributes(column: str, cells: Sequence[str]) -> list[Attributes]:
    """Return each item's attributes in a column; numbers of more than ``PARTS`` values as the part they fall into."""
    filled = sorted(float(cell) for cell in cells if cell and _is_number(cell))
    if len(set(filled)) <= PARTS or len(filled) < sum(map(bool, cells)):
        return [tuple(f"{column}={part}" for part in _parts(cell)) for cell in cells]
    edges = np.unique([filled[len(filled) * part // PARTS] for part in range(PARTS)])
    names = [f"{column}={edge:g} and more" for edge in edges]
    return [(names[int(np.searchsorted(edges, float(cell), "right")) - 1],) if cell else () for cell in cells]


def picture_paths(path: Path, settings: DataSettings) -> list[list[Path]]:
    """Return, for each picture that a table names, where it may lie."""
    columns = read_columns(path)
    columns.pop(_id_column(path, columns, settings.item_column))
    holds = {column: settings.item_columns.get(column) or _told(cells) for column, cells in columns.items()}
    cells = [cell for column, kind in holds.items() if kind == "picture" for cell in columns[column] if cell]
    return [_places(path, cell, settings) for cell in cells]


def _places(path: Path, cell: str, settings: DataSettings) -> list[Path]:
    """Paths of pictures start at the folder of the table, or at ``data.data_dir``."""
    folders = [path.parent, *([] if settings.data_dir is None else [settings.data_dir])]
    return [folder.absolute() / cell for folder in folders]


def _pictures(path: Path, column: str, cells: Sequence[str], settings: DataSettings) -> list[Path | None]:
    """Return the pictures that are there. Raises FedMoEError if most are not."""
    places = [_places(path, cell, settings) if cell else [] for cell in cells]
    found = [next((each for each in own if each.is_file()), None) for own in places]
    named, there = sum(map(bool, cells)), sum(each is not None for each in found)
    if there < LEAST_FOUND * named:
        lost = next(cell for cell, each in zip(cells, found, strict=True) if cell and each is None)
        raise FedMoEError(
            f"{path}: {named - there} of the {named} pictures of column '{column}' are not there, such as {lost} - "
            f"paths start at {path.parent} or at data.data_dir; data.item_columns.{column}=ignore runs without"
        )
    return found
