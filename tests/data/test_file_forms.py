"""What a file is, told by its content: the histories that were meant, or one error that names the setting."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.file_forms import Columns
from data.interactions import Events
from data.sequence_files import read_events
from fedmoe.errors import FedMoEError

ROWS = [("u1", "a", 881250949), ("u2", "b", 881250950), ("u1", "b", 881250951)]
HEAD = ["user_id", "item_id", "timestamp"]


def pairs(events: Events) -> list[tuple[str, str]]:
    return list(zip(events.users.names[events.users.rows], events.items.names[events.items.rows], strict=True))


def table(delimiter: str, head: list[str] | None = HEAD) -> str:
    return "".join(delimiter.join(map(str, row)) + "\n" for row in ([head] if head else []) + ROWS)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.tsv", table("\t")),
        ("x.txt", table("\t")),  # by its first line, not by its ending
        ("x.dat", table(";")),
        ("x.csv", table("|")),
        ("x", table(",")),
        ("x.txt", table("\t", ["user_id:token", "item_id:token", "timestamp:float"])),
        ("x.jsonl", "".join(json.dumps(dict(zip(HEAD, row, strict=True))) + "\n" for row in ROWS)),
        ("x.log", "".join(json.dumps(dict(zip(HEAD, row, strict=True)) | {"note": "n"}) + "\n" for row in ROWS)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_is_read_by_its_columns_whatever_its_ending(
    tmp_path: Path, name: str, text: str, packed: bool, mark: str
) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    content = (mark + text).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    events = read_events(path)
    assert pairs(events) == [row[:2] for row in ROWS]
    assert events.times is not None and events.times.tolist() == [row[2] for row in ROWS]


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_a_table_without_a_header_has_numbered_columns(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(table(delimiter, None))
    assert pairs(read_events(path, columns=Columns("1", "2", "3"))) == [row[:2] for row in ROWS]
    assert read_events(path, columns=Columns("1", "2", None)).times is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "user\titem\trating\ttime\n1\t2\t5\t881250949\n",
            "names of columns .user, item, rating, time.*data.user_column",
        ),
        ("user item rating\n1 2 5\n1 3 4\n", "names of columns"),
        ("1,2,5,881250949\n1,3,4,881250950\n", "separated by ','.*data.user_column=1"),
        ("1 2 5\n1 3 4\n", "every line has 3 fields.*data.data_format"),
        ("1 2 5 7\n1 3 4 8\n", "every line has 4 fields.*data.data_format"),
    ],
)
def test_what_may_be_a_table_is_never_read_as_sequences(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text)
    with pytest.raises(FedMoEError, match=message):
        read_events(path)
    read_events(path, "csv" if "," in text else "sequences", Columns("1", "2", None))  # and the setting resolves it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"1 2 3 4 5\n" * 9, mtime=0)[:-9], "cannot be unpacked"),
        (b"PK\x03\x04 and more", "zip archive"),
        ("1 2 3".encode("utf-16"), "UTF-16"),
        (b'{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id": 1,\n', "cannot be read as jsonl"),
        (b'{"user": 1, "item": 2}\n', "has no column 'user_id'.*it has user, item"),
    ],
)
def test_a_wrong_file_is_named_for_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(FedMoEError, match=message):
        read_events(path)


PIECES = st.sampled_from(
    ["1", "2", "u", "é", "881250949", "nan", "", " ", "\t", ",", "::", ";", "|", '"', "{", "}", "user_id", "item_id"]
)


@given(
    st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "latin-1", "utf-16"]),
    st.sampled_from(["x", "x.csv", "x.tsv", "x.inter", "x.jsonl", "x.parquet", "x.gz"]),
    st.integers(0, 3),
)
def test_any_file_gives_histories_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, encoding: str, name: str, lost: int
) -> None:
    path = tmp_path_factory.mktemp("files", numbered=True) / name
    content = end.join(lines).encode(encoding)
    path.write_bytes(content[: len(content) - lost])
    try:
        events = read_events(path)
    except FedMoEError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert len(events.users.rows) == len(events.items.rows) > 0
    assert not {"", " "} & set(events.items.names.tolist())
