"""Files of histories: every format, and errors that name file and line."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data.file_forms import Columns
from data.interactions import Events
from data.sequence_files import read_events
from fedmoe.errors import FedMoEError


def file(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def rows(events: Events) -> list[tuple[Any, ...]]:
    """Return the events as (user, item) or (user, item, time)."""
    columns = [codes.names[codes.rows].tolist() for codes in (events.users, events.items)]
    if events.times is not None:
        columns.append(events.times.tolist())
    return list(zip(*columns, strict=True))


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


# Lines of words


def test_sequences(tmp_path: Path) -> None:
    path = file(tmp_path, "s.txt", "7 10 11  10\n\n  x\tb \r\n7 3\n")
    assert rows(read_events(path)) == [("7", "10"), ("7", "11"), ("7", "10"), ("x", "b"), ("7", "3")]


def test_a_user_without_items_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"s.txt, line 3: has a user but no item"):
        read_events(file(tmp_path, "s.txt", "1 2\n\n3\n"))


def test_ratings(tmp_path: Path) -> None:
    path = file(tmp_path, "r.dat", "1 5 4 881250949\n2\t6\t3.5\t881250950.5\n")
    assert rows(read_events(path)) == [("1", "5", 881250949.0), ("2", "6", 881250950.5)]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("1 5 4 881250949\n2 6 3 881250950\n", "ratings"),
        ("1 5 4 881250949\n2 6 3\n", "sequences"),
        ("1 5 4 6\n2 6 3 9 4\n", "sequences"),  # the fourth number is no time
        ("1 5 4 nan\n", "sequences"),
        ("a 5 4 881250949\n", "ratings"),  # ids may be words
        ("1::5::4::881250949\n", "ratings"),
        ("1 5 4 881250949\n" * 20 + "1 5 4\n", "ratings"),  # only the first twenty lines decide
    ],
)
def test_auto_tells_ratings_from_sequences(tmp_path: Path, text: str, form: str) -> None:
    path = file(tmp_path, "f.txt", text)
    try:
        found = "sequences" if read_events(path).times is None else "ratings"
    except FedMoEError as error:
        found = "ratings" if "line 21: has 3 fields - a line is 'user item rating time'" in str(error) else "?"
    assert found == form


def test_the_named_format_wins(tmp_path: Path) -> None:
    assert len(rows(read_events(file(tmp_path, "f.txt", "1 5 4 881250949\n"), "sequences"))) == 3
    assert rows(read_events(file(tmp_path, "g.txt", "1 5 4 6\n"), "ratings")) == [("1", "5", 6.0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3", "line 2: has 3 fields"),
        ("1 2 good 881250949", "line 2: rating is 'good' - it must be a number"),
        ("1 2 3 monday", "line 2: time is 'monday'"),
        ("1 2 3 inf", "line 2: time is not finite"),
    ],
)
def test_bad_ratings_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = file(tmp_path, "r.dat", f"1 5 4 881250949\n{line}\n")
    with pytest.raises(FedMoEError, match=rf"r.dat, {message}"):
        read_events(path, "ratings")


# Tables


def test_inter(tmp_path: Path) -> None:
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    path = file(tmp_path, "d.inter", f'{head}1\t"5\t4\t10\n01\t6\t3\t9.5\n')
    assert rows(read_events(path)) == [("1", '"5', 10.0), ("01", "6", 9.5)]


def test_csv_with_named_columns_and_quotes(tmp_path: Path) -> None:
    path = file(tmp_path, "d.csv", '\ufeffwho,x,"what",when\n007,1,"a,b",3\nu,2, c ,1\n')
    events = read_events(path, columns=Columns("who", "what", "when"))
    assert rows(events) == [("007", "a,b", 3), ("u", "c", 1)]
    assert rows(read_events(path, columns=Columns("who", "what", None))) == [("007", "a,b"), ("u", "c")]


def test_line_ends_at_the_end_of_a_table(tmp_path: Path) -> None:
    path = file(tmp_path, "d.csv", "user_id,item_id,timestamp\r\n1,2,3\r\n1,4,5\r\n\r\n\n")
    assert rows(read_events(path)) == [("1", "2", 3), ("1", "4", 5)]
    with pytest.raises(FedMoEError, match="line 3: column 'user_id' is empty"):
        read_events(file(tmp_path, "e.csv", "user_id,item_id,timestamp\n1,2,3\n\n1,4,5\n"))


def test_csv_with_dates(tmp_path: Path) -> None:
    path = file(tmp_path, "d.csv", "user_id,item_id,timestamp\n1,2,2020-01-02 00:00:00\n1,3,2020-01-01 00:00:00\n")
    times = read_events(path).times
    assert times is not None and times[0] - times[1] == 86_400 * 10**6


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", user_id=[3, 4], item_id=["a", "b"], timestamp=[2.5, 1.0])
    assert rows(read_events(path)) == [("3", "a", 2.5), ("4", "b", 1.0)]
    dates = [datetime.date(2020, 1, 2), datetime.date(2020, 1, 1)]
    items = pa.array(["x", "y"]).dictionary_encode()
    path = parquet(tmp_path / "e.pq", user_id=[1.0, 2.0], item_id=items, timestamp=dates)
    events = read_events(path)
    assert [row[:2] for row in rows(events)] == [("1", "x"), ("2", "y")]
    assert events.times is not None and events.times[0] > events.times[1]


def test_a_missing_column_is_named_with_what_there_is(tmp_path: Path) -> None:
    path = file(tmp_path, "d.csv", "userid,item_id,time\n1,2,3\n")
    with pytest.raises(FedMoEError) as caught:
        read_events(path)
    message = str(caught.value)
    assert "has no column 'user_id' - did you mean 'userid'?, 'timestamp'" in message
    assert "; it has userid, item_id, time" in message
    assert "set data.user_column" in message
    assert "data.user_column and data.time_column" in message
    with pytest.raises(FedMoEError, match=r"no column 'timestamp'.*data.time_column .* null for the order of the file"):
        read_events(path, columns=Columns(user="userid"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,,3", "line 3: column 'item_id' is empty"),
        ("1, ,3", "line 3: column 'item_id' is blank"),
        ("1,2,", "line 3: column 'timestamp' is empty"),
        ("1,2,soon", "line 3: timestamp is 'soon' - it must be a number"),
        ("1,2,inf", "line 3: timestamp is not finite"),
        ("1,2", "line 3: cannot be read as csv"),
    ],
)
def test_bad_csv_rows_name_the_line(tmp_path: Path, row: str, message: str) -> None:
    path = file(tmp_path, "d.csv", f"user_id,item_id,timestamp\n1,2,3\n{row}\n1,5,6\n")
    with pytest.raises(FedMoEError, match=rf"d.csv, {message}"):
        read_events(path)


@pytest.mark.parametrize("missing", ["", "NA", "NaN", "null", "\\N"])
def test_incomplete_rows_are_an_error_or_left_out(tmp_path: Path, missing: str) -> None:
    """R, pandas and SQL dumps write a missing value as a word, which would become a user that all of them share."""
    body = f"1,2,3\n{missing},9,4\n1,5,6\n2,{missing},1\n2,4,{missing}\n"
    path = file(tmp_path, "d.csv", f"user_id,item_id,timestamp\n{body}")
    with pytest.raises(
        FedMoEError, match=r"line 3: column 'user_id' is empty or says NA, as in 1 of 5 rows - .*data.incomplete=drop"
    ):
        read_events(path)
    events = read_events(path, incomplete="drop")
    assert rows(events) == [("1", "2", 3), ("1", "5", 6)]
    assert events.left_out == 3


def test_numbers_of_lines_stay_right_behind_rows_left_out(tmp_path: Path) -> None:
    path = file(tmp_path, "d.csv", "user_id,item_id,timestamp\n,2,3\n1,2,soon\n")
    with pytest.raises(FedMoEError, match="line 3: timestamp is 'soon'"):
        read_events(path, incomplete="drop")


@pytest.mark.parametrize(
    ("times", "form", "seconds"),
    [
        (["2012-04-03 18:00:09", "2012-04-03T18:00:08"], None, [1333476009, 1333476008]),
        (["2012-04-03T20:00:09+02:00", "2012-04-03T18:00:08Z"], None, [1333476009, 1333476008]),
        (["Tue Apr 03 18:00:09 +0000 2012", "Tue Apr 03 18:00:08 +0000 2012"], "%a %b %d %H:%M:%S %z %Y", None),
        (["03/04/2012", "02/05/2012"], "%d/%m/%Y", [1333411200, 1335916800]),  # in the other order as %m/%d/%Y
    ],
)
def test_times_are_dates_in_a_form_that_may_be_named(
    tmp_path: Path, times: list[str], form: str | None, seconds: list[int] | None
) -> None:
    path = file(tmp_path, "d.csv", f"user_id,item_id,timestamp\n1,a,{times[0]}\n1,b,{times[1]}\n")
    events = read_events(path, columns=Columns(time_format=form))
    assert events.times is not None
    assert (events.times / 1e6).tolist() == (seconds or [1333476009, 1333476008])


@pytest.mark.parametrize(
    ("times", "form", "message"),
    [
        ("11:38:36", None, "is time32.*puts no two days in order"),
        ("true", None, "is bool"),
        ("03.04.2012", None, "must be a number, or a date such as .* data.time_format"),
        ("2012-04-03", "%d/%m/%Y", "line 2: timestamp: time data .* correct data.time_format"),
    ],
)
def test_times_that_give_no_order_are_refused(tmp_path: Path, times: str, form: str | None, message: str) -> None:
    path = file(tmp_path, "d.csv", f"user_id,item_id,timestamp\n1,a,{times}\n")
    with pytest.raises(FedMoEError, match=message):
        read_events(path, columns=Columns(time_format=form))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are told by Linux alone")
def test_reading_needs_a_few_times_the_file_s_memory(tmp_path: Path) -> None:
    """Above what the imports take, at most 12 times the file (6 times one of 600 MB)."""
    count = 600_000
    path = file(
        tmp_path,
        "d.csv",
        "user_id,item_id,timestamp\n"
        + "".join(f"{i // 50},{i * 7919 % 50_000},{10**9 + i * 7919 % 10**6}\n" for i in range(count)),
    )
    code = """
import re, sys
from pathlib import Path
from data.interactions import from_events, rows_to_keep
from data.sequence_files import read_events
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
events = read_events(Path(sys.argv[1]))
rows_to_keep(events, "drop", "keep")
from_events(events.users, events.items, events.times, 5)
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 12, done.stdout


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(FedMoEError, match="cannot be read as parquet"):
        read_events(path)
    parquet(path, user_id=[1, None], item_id=[1, 2], timestamp=[1, 2])
    with pytest.raises(FedMoEError, match="line 2: column 'user_id' is empty"):
        read_events(path)
    parquet(path, user_id=[1.5], item_id=[1], timestamp=[1])
    with pytest.raises(FedMoEError, match="column 'user_id' holds fractions"):
        read_events(path)
    parquet(path, user_id=[[1]], item_id=[1], timestamp=[1])
    with pytest.raises(FedMoEError, match="column 'user_id' is list"):
        read_events(path)
    parquet(path, user_id=[1], item_id=[1], timestamp=[[1]])
    with pytest.raises(FedMoEError, match=r"timestamp is '\[1\]' - it must be a number"):
        read_events(path)


# Any file


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"none.txt: no such file - correct data.data_file"):
        read_events(tmp_path / "none.txt")
    with pytest.raises(FedMoEError, match=r"e.txt: the file has no interactions"):
        read_events(file(tmp_path, "e.txt", "\n"))
    with pytest.raises(FedMoEError, match=r"e.csv: the file has no interactions"):
        read_events(file(tmp_path, "e.csv", "user_id,item_id,timestamp\n"))
    (tmp_path / "b.txt").write_bytes(b"1 2\n3 \xff\n")
    with pytest.raises(FedMoEError, match=r"b.txt, line 2: is not UTF-8"):
        read_events(tmp_path / "b.txt")
    (tmp_path / "b.csv").write_bytes(b"user_id,item_id,timestamp\n1,\xff,3\n")
    with pytest.raises(FedMoEError, match=r"b.csv.*UTF"):
        read_events(tmp_path / "b.csv")
    (tmp_path / "z.csv").write_bytes(b"")
    with pytest.raises(FedMoEError, match="has no column 'user_id'"):
        read_events(tmp_path / "z.csv")


@pytest.mark.parametrize("name", ["r.txt", "r.csv"])
def test_two_hundred_thousand_lines_take_a_moment(tmp_path: Path, name: str) -> None:
    count = 200_000
    separator = "," if name == "r.csv" else " "
    head = "user_id,item_id,rating,timestamp\n" if name == "r.csv" else ""
    path = file(
        tmp_path,
        name,
        head + "".join(f"{i % 999}{separator}{i % 77}{separator}4{separator}{10**9 + i}\n" for i in range(count)),
    )
    start = time.process_time()
    events = read_events(path)
    assert time.process_time() - start < 5.0  # a Python loop with objects is slower even on a fast machine
    assert len(events.users.rows) == count and len(events.items.names) == 77
    assert events.times is not None and np.array_equal(np.diff(events.times), np.ones(count - 1))
