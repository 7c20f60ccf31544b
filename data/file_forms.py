"""What a file of histories is: told by its content, never guessed where it might be something else.

The ending decides only between forms that look alike. A file that could be read in two ways is refused, with the
setting that says which one is meant: reading it the wrong way would make ratings and times into items.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fedmoe.errors import FedMoEError

Format = Literal["auto", "sequences", "ratings", "inter", "csv", "jsonl", "parquet"]
_ENDINGS: dict[str, Format] = {
    ".inter": "inter",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_DELIMITERS = "\t,;|"
_SNIFFED_BYTES = 1 << 20
_SNIFFED_LINES = 20
LEAST_TIME = 1e8  # a number as large as this is a time in seconds (1973 or later), not an item or a rating


class Columns(NamedTuple):
    """Names of the columns of a table, or their numbers from 1 where it has no header.

    ``time`` None keeps the order of the file. ``time_format`` says how a time is written, as for ``strptime``; None: a
    number, or a date of ISO 8601.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = "timestamp"
    time_format: str | None = None

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return [name for name in (self.user, self.item, self.time) if name is not None]

    @property
    def numbered(self) -> bool:
        """Whether the columns are given by their numbers: the table then has no header."""
        return all(name.isdecimal() for name in self.names)


def content_of(path: Path) -> bytes:
    """Return a file's content, unpacked where it is gzip's, without a byte order mark.

    Raises FedMoEError if it is missing, damaged, a zip archive or UTF-16.
    """
    if not path.is_file():
        raise FedMoEError(f"{path}: no such file - correct data.data_file or data.data_dir")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise FedMoEError(f"{path}: cannot be unpacked ({error}) - was it cut off?") from error
    if content[:4] == b"PK\x03\x04":
        raise FedMoEError(f"{path}: is a zip archive - unpack it and name the file of histories inside")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FedMoEError(f"{path}: is UTF-16 text - save it as UTF-8")
    return content.removeprefix(b"\xef\xbb\xbf")


def form_of(path: Path, content: bytes, columns: Columns) -> Format:
    """Return the form of a file's content.

    Raises FedMoEError where it may be more than one, or is a table whose columns are not the ones that are wanted.
    """
    if content[:4] == b"PAR1":
        return "parquet"
    lines = [line for line in content[:_SNIFFED_BYTES].decode("utf-8", "replace").splitlines() if line.strip()]
    lines = lines[:_SNIFFED_LINES]
    if lines and lines[0].lstrip().startswith("{"):
        return "jsonl"
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if form := _ENDINGS.get(name.suffix.lower()):
        return form
    if columns.numbered:
        return "csv"
    if lines and all(_is_rating(line.replace("::", " ").split()) for line in lines):
        return "ratings"
    delimiter = delimiter_of(lines[0]) if lines else None
    if delimiter is not None:
        heads = lines[0].split(delimiter)
        if {columns.user, columns.item} <= {head.partition(":")[0].strip().strip('"') for head in heads}:
            return "inter" if ":" in heads[0] else "csv"
    if reason := _no_sequences(lines, delimiter):
        raise FedMoEError(f"{path}: {reason}")
    return "sequences"


def delimiter_of(line: str) -> str | None:
    """Return what separates the fields of a table's line: tab, comma, semicolon or bar; None: nothing of these."""
    best = max(_DELIMITERS, key=line.count)
    return best if best in line else None


def _is_rating(words: Sequence[str]) -> bool:
    """Whether a line is ``user item rating time``: the ids may be any words."""
    return len(words) == 4 and _number(words[2]) is not None and (_number(words[3]) or 0.0) >= LEAST_TIME


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _no_sequences(lines: Sequence[str], delimiter: str | None) -> str:
    """Return why lines can hardly be ``user item item ...``; "" if they can."""
    numbered = "data.user_column=1 data.item_column=2, and data.time_column=3 or null"
    if delimiter not in (None, "\t"):
        return (
            f"looks like a table separated by '{delimiter}' - set data.user_column and data.item_column to names of "
            f"its first line ({lines[0][:80]}), or where it has none to numbers: {numbered}"
        )
    rows = [line.split() for line in lines]
    if len(rows) > 1 and _looks_like_a_header(rows[0], rows[1:]):
        return (
            f"its first line looks like the names of columns ({', '.join(rows[0])[:80]}) - set data.user_column and "
            "data.item_column to two of them, or data.data_format=sequences if it is a user and items"
        )
    if len(rows) > 1 and len({len(row) for row in rows}) == 1 and len(rows[0]) in (3, 4):
        return (
            f"every line has {len(rows[0])} fields, so it may be sequences or a table - set data.data_format to "
            f"sequences or ratings, or to csv with {numbered}"
        )
    return ""


def _looks_like_a_header(first: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Whether the first line holds words alone and the others, of as many fields, numbers in the same places."""
    alike = len(first) > 1 and all(len(row) == len(first) for row in others)
    numeric = [all(_number(row[place]) is not None for row in others) for place in range(len(first))] if alike else []
    return any(numeric) and all(_number(word) is None for word in first)
