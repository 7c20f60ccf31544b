"""Own history files: what is read of them, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe.errors import FedMoEError
from fedmoe_client.store.history import read_histories, read_history

NUMBERS = {"10": 1, "20": 2, "30": 3, "x": 4}


def items(path: Path) -> list[int]:
    return [int(item) for item in read_history(path, NUMBERS)[0]]


def test_a_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "history.txt"
    path.write_text("# mine\n10\n\n30\r\n")
    assert items(path) == [1, 3]
    with path.open("a") as file:
        file.write("x\n2")
    assert items(path) == [1, 3, 4]  # '2' may be the beginning of '20'
    with path.open("a") as file:
        file.write("0\n")
    assert items(path) == [1, 3, 4, 2]


def test_times_put_lines_in_order_and_ties_keep_the_files(tmp_path: Path) -> None:
    path = tmp_path / "history.txt"
    path.write_text("10 5\n20 1.5\n30\t5\n")
    assert items(path) == [2, 1, 3]


def test_items_that_the_catalogue_lacks_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "history.txt"
    path.write_text("10\nnew\n20\n")
    found, unknown = read_history(path, NUMBERS)
    assert (found.tolist(), unknown) == ([1, 2], ("new",))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"10\n20 30 40\n", "line 2: has 3 words"),
        (b"10 1\n20\n", "line 2: has no time"),
        (b"10 soon\n", "line 1: time is 'soon'"),
        (b"10 inf\n", "time is 'inf'"),
        (b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "history.txt"
    path.write_bytes(content)
    with pytest.raises(FedMoEError, match=complaint):
        read_history(path, NUMBERS)


def test_a_missing_file_and_a_short_history_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match="cannot be read"):
        read_histories(tmp_path / "none.txt", 1, NUMBERS)
    path = tmp_path / "history.txt"
    path.write_text("10\n20\nnew\n")
    with pytest.raises(FedMoEError, match="does not have 3 items .*it has 2; 1 items such as 'new'"):
        read_histories(path, 1, NUMBERS)


def test_a_folder_is_a_silo_whose_users_keep_their_numbers(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match="holds no history"):
        read_histories(tmp_path, 1, NUMBERS)
    (tmp_path / "ann.txt").write_text("10\n20\n30\n")
    (tmp_path / "short.txt").write_text("10\n")
    alone = read_histories(tmp_path, 1, NUMBERS)
    (tmp_path / "abe.txt").write_text("30\n20\n10\n")
    both = read_histories(tmp_path, 1, NUMBERS)
    assert sorted(both.names.values()) == ["abe", "ann"]
    (ann,) = alone.users
    assert both.names[ann] == "ann"
    assert both.history(ann).tolist() == [1, 2, 3]
    assert both.num_items == 4
