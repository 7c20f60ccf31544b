"""MovieLens by name: all layouts, fetching with a fake mirror, checksums, the licence note."""

from __future__ import annotations

import http.client
import io
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from data.movielens import LAYOUTS, MIRRORS, Mirror, find_files, read_films, read_interactions
from data.titles import Film
from fedmoe.errors import FedMoEError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
FILES = {
    "ml-100k.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t881\n",
    "ml-100k.item": b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n2\tA\t1995\tCrime\n",
}


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(f"deep/{name}", content)
    return buffer.getvalue()


def mirror(title: str, fetch: Callable[[], bytes], files: dict[str, bytes] | None = None) -> Mirror:
    checksums = {name: sha256(content).hexdigest() for name, content in (files or FILES).items()}
    return Mirror(title, fetch, "deep", checksums)


def unreachable() -> bytes:
    raise OSError("no route\nto host")


def cut_off() -> bytes:
    raise http.client.IncompleteRead(b"half")


# Fetching


def test_the_first_mirror_that_works_fills_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirrors = [mirror("far", unreachable), mirror("cut", cut_off), mirror("near", lambda: archive(FILES))]
    events, films = find_files("ml-100k", None, tmp_path, mirrors)
    assert events == tmp_path / "ml-100k" / "ml-100k.inter" and films.name == "ml-100k.item"
    assert events.read_bytes() == FILES["ml-100k.inter"]
    output = capsys.readouterr()
    assert output.out == "" and "Harper" in output.err and "not to be redistributed" in output.err
    assert find_files("ml-100k", None, tmp_path, []) == (events, films)  # nothing is fetched twice
    assert capsys.readouterr().err == ""


def test_the_licence_note_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [mirror("near", lambda: archive(FILES))]
    events, _ = find_files("ml-100k", None, tmp_path, good)
    events.unlink()
    find_files("ml-100k", None, tmp_path, good)
    assert capsys.readouterr().err.count("Harper") == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (archive({**FILES, "ml-100k.inter": b"other"}), "deep/ml-100k.inter has another checksum"),
        (archive({"ml-100k.item": FILES["ml-100k.item"]}), "deep/ml-100k.inter is not in the archive"),
        (archive(FILES)[:-30], "near: .*zip"),
        (archive(FILES).replace(b"881", b"882"), "near: Bad CRC-32"),
    ],
)
def test_a_bad_archive_leaves_nothing_behind(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(FedMoEError, match=reason):
        find_files("ml-100k", None, tmp_path, [mirror("near", lambda: content)])
    assert not list(tmp_path.rglob("ml-100k.*"))


def test_without_a_mirror_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError) as caught:
        find_files("ml-1m", None, tmp_path, [mirror("far", unreachable)])
    message = str(caught.value)
    assert "ml-1m could not be fetched (far: no route to host)" in message
    assert f"put ratings.dat and movies.dat or sequences.txt and movies.dat into {tmp_path / 'ml-1m'}" in message
    assert "https://files.grouplens.org/datasets/movielens/ml-1m.zip" in message and "\n" not in message


def test_mirrors_give_complete_layouts() -> None:
    for name, mirrors in MIRRORS.items():
        for each in mirrors:
            assert any(set(layout) == set(each.files) for layout in LAYOUTS[name])
            # Written last, the interactions stand for a complete folder.
            assert list(each.files)[-1] in {layout.events for layout in LAYOUTS[name]}


# Finding


def test_a_folder_of_ones_own_comes_before_the_cache(tmp_path: Path) -> None:
    for folder in ("cache/ml-100k", "own", "parent/ml-100k"):
        (tmp_path / folder).mkdir(parents=True)
        for name, content in FILES.items():
            (tmp_path / folder / name).write_bytes(content)
    cache = tmp_path / "cache"
    assert find_files("ml-100k", tmp_path / "own", cache)[0].parent == tmp_path / "own"
    assert find_files("ml-100k", tmp_path / "parent", cache)[0].parent == tmp_path / "parent" / "ml-100k"
    assert find_files("ml-100k", tmp_path, cache)[0].parent == cache / "ml-100k"


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_bytes(b"1\t2\t3\t10\n")
    with pytest.raises(FedMoEError, match=r"u.item: is missing beside u.data - put it there"):
        find_files("ml-100k", tmp_path, tmp_path / "cache")


# Reading


def test_both_layouts_of_ml_100k_give_the_same(tmp_path: Path) -> None:
    flags = {"Heat": "0|1|0|0|0|0|1|0|0|0|0|0|0|0|0|0|1|0|0", "unknown": "1" + "|0" * 18, "Land": "0|0|0|1" + "|0" * 15}
    (tmp_path / "u.item").write_bytes(
        f"4|Misérables (Heat), Les (1995)|01-Jan-1995||http://x|{flags['Heat']}\n"
        f"267|unknown||||{flags['unknown']}\n"
        f"1412|Land: Time (1995) (V)|01-Jan-1995||http://x|{flags['Land']}\n".encode("latin-1")
    )
    (tmp_path / "ml-100k.item").write_bytes(
        b"item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "4\tMisérables (Heat), Les\t1995\tThriller Action Crime\n".encode()
        + b"267\tunkonwn\tunkonwn\tunknown\n1412\tLand: Time (1995)\tV\tAnimation\n"
    )
    films = read_films(tmp_path / "u.item")
    assert films == read_films(tmp_path / "ml-100k.item")
    assert films["4"] == Film("Misérables (Heat), Les", 1995, ("Action", "Crime", "Thriller"))
    assert films["267"] == Film("unknown", None, ("unknown",))
    assert films["1412"] == Film("Land: Time", 1995, ("Animation",))
    (tmp_path / "u.data").write_bytes(b"196\t242\t3\t881250949\n")
    (tmp_path / "ml-100k.inter").write_bytes(FILES["ml-100k.inter"].splitlines(True)[0] + b"196\t242\t3\t881250949\n")
    first, second = (read_interactions(tmp_path / name) for name in ("u.data", "ml-100k.inter"))
    for events in (first, second):
        assert (events.users.names.tolist(), events.items.names.tolist()) == (["196"], ["242"])
        assert events.times is not None and events.times.tolist() == [881250949]


def test_ml_1m(tmp_path: Path) -> None:
    (tmp_path / "movies.dat").write_bytes("9::A::B: Até (1990)::Drama|Comedy\r\n".encode("latin-1"))
    assert read_films(tmp_path / "movies.dat") == {"9": Film("A::B: Até", 1990, ("Comedy", "Drama"))}
    (tmp_path / "ratings.dat").write_bytes(b"1::1193::5::978300760\n1::661::3::978302109\n")
    events = read_interactions(tmp_path / "ratings.dat")
    assert events.items.names[events.items.rows].tolist() == ["1193", "661"]
    (tmp_path / "sequences.txt").write_bytes(b"1 2 3 978300760\n")  # however it looks, it is no rating
    assert len(read_interactions(tmp_path / "sequences.txt").items.rows) == 3


@pytest.mark.parametrize("name", ["u.item", "ml-100k.item", "movies.dat"])
def test_a_damaged_table_of_films_names_the_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\nnonsense\n")
    with pytest.raises(FedMoEError, match=f"{name}, line 2: is not a film's line"):
        read_films(tmp_path / name)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data")
def test_the_real_ml_100k_has_the_pinned_checksums() -> None:
    for name, checksum in MIRRORS["ml-100k"][1].files.items():
        assert sha256((SHARED / "ml-100k" / name).read_bytes()).hexdigest() == checksum
    ratings = (SHARED / "ml-100k" / "ml-100k.inter").read_bytes().split(b"\n", 1)[1]  # u.data under a header
    assert sha256(ratings).hexdigest() == MIRRORS["ml-100k"][0].files["u.data"]
    movies = (SHARED / "ml-1m" / "movies.dat").read_bytes()
    assert sha256(movies).hexdigest() == MIRRORS["ml-1m"][0].files["movies.dat"]
