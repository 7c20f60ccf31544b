"""MovieLens 100K and 1M by name: from a folder, from the cache, or fetched into the cache.

Fetched files must have the checksums below. Files in a folder of the user's own are read as they are.
"""

from __future__ import annotations

import http.client
import io
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from data.titles import Film, split_year
from fedmoe.errors import FedMoEError
from fedmoe.files import write_file

if TYPE_CHECKING:
    from data.interactions import Events

Name = Literal["ml-100k", "ml-1m"]
LICENCE_NOTE = """\
MovieLens data, GroupLens Research, University of Minnesota: for research, not for commercial use without permission,
and not to be redistributed. Publications must cite: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens
Datasets: History and Context. ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19.
https://doi.org/10.1145/2827872
"""
_NETWORK_TIMEOUT = 10  # seconds without an answer
_PIP_TIMEOUT = 120  # seconds for the whole download
_MIRROR_ERRORS = (OSError, http.client.HTTPException, subprocess.SubprocessError, zipfile.BadZipFile, zlib.error)
_U_ITEM_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


class Layout(NamedTuple):
    """Names of the two files of one form of a data set."""

    events: str
    films: str


class Mirror(NamedTuple):
    """A place that an archive (zip) can be had from."""

    title: str
    fetch: Callable[[], bytes]
    folder: str  # of the files inside the archive
    files: dict[str, str]  # name -> SHA-256; the interactions last


LAYOUTS: dict[Name, tuple[Layout, ...]] = {
    "ml-100k": (Layout("u.data", "u.item"), Layout("ml-100k.inter", "ml-100k.item")),
    "ml-1m": (Layout("ratings.dat", "movies.dat"), Layout("sequences.txt", "movies.dat")),
}


def archive_url(name: Name) -> str:
    """Return the address of GroupLens' archive."""
    return f"https://files.grouplens.org/datasets/movielens/{name}.zip"


def _from_grouplens(name: Name) -> bytes:
    with urllib.request.urlopen(archive_url(name), timeout=_NETWORK_TIMEOUT) as reply:
        content: bytes = reply.read()
    return content


def _from_pypi(requirement: str) -> bytes:
    """Fetch a wheel with pip, as an archive: nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", str(_NETWORK_TIMEOUT)]
        done = subprocess.run(
            [*command, "--dest", folder, requirement], capture_output=True, text=True, timeout=_PIP_TIMEOUT, check=False
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise OSError((done.stderr.strip().splitlines() or ["no wheel came"])[-1])
        return wheels[0].read_bytes()


MIRRORS: dict[Name, tuple[Mirror, ...]] = {
    "ml-100k": (
        Mirror(
            *("GroupLens", partial(_from_grouplens, "ml-100k"), "ml-100k"),
            {
                "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
                "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
            },
        ),
        Mirror(
            *("PyPI", partial(_from_pypi, "recbole==1.2.1"), "recbole/dataset_example/ml-100k"),
            {
                "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            },
        ),
    ),
    "ml-1m": (
        Mirror(
            *("GroupLens", partial(_from_grouplens, "ml-1m"), "ml-1m"),
            {
                "movies.dat": "0140fc2356357c1a851d0f52e893a1e4d3696df632c4141cea8d5bc3d621f0b9",
                "ratings.dat": "506d64ca44484487c11dc2d9a28de5c54948213e6b96285e298afe28d6ea4e0f",
            },
        ),
    ),
}


# Finding the files


def find_files(
    name: Name, data_dir: Path | None, cache: Path, mirrors: Sequence[Mirror] | None = None
) -> tuple[Path, Path]:
    """Return the files of interactions and films.

    They are looked for in ``data_dir``, its subfolder of the data set's name, and the cache, and else fetched from the
    first mirror that works into ``cache/name``.

    Raises:
        FedMoEError: only one of the two files is there, or no mirror works.
    """
    folders = [cache / name] if data_dir is None else [data_dir, data_dir / name, cache / name]
    for folder in folders:
        for layout in LAYOUTS[name]:
            events, films = folder / layout.events, folder / layout.films
            if events.is_file():
                if not films.is_file():
                    raise FedMoEError(f"{films}: is missing beside {events.name} - put it there; it holds the titles")
                return events, films
    _fetch(name, cache / name, MIRRORS[name] if mirrors is None else mirrors)
    return find_files(name, None, cache, ())


def _fetch(name: Name, folder: Path, mirrors: Sequence[Mirror]) -> None:
    """Fill ``folder`` from the first mirror that works; the interactions are written last and so stand for the rest."""
    reasons = []
    for mirror in mirrors:
        try:
            files = _extract(mirror)
        except _MIRROR_ERRORS as error:
            reasons.append(f"{mirror.title}: {' '.join(str(error).split())[:150]}")
            continue
        for file, content in files.items():
            write_file(folder / file, content)
        _show_licence(folder / "LICENCE.txt")
        return
    layouts = " or ".join(" and ".join(layout) for layout in LAYOUTS[name])
    raise FedMoEError(
        f"{name} could not be fetched ({'; '.join(reasons)}) - put {layouts} into {folder} or set data.data_dir; "
        f"the data is at {archive_url(name)}"
    )


def _extract(mirror: Mirror) -> dict[str, bytes]:
    """Fetch an archive and return its files by name, checked."""
    archive = zipfile.ZipFile(io.BytesIO(mirror.fetch()))
    files = {}
    for file, checksum in mirror.files.items():
        path = f"{mirror.folder}/{file}"
        try:
            files[file] = archive.read(path)
        except KeyError:
            raise OSError(f"{path} is not in the archive") from None
        if sha256(files[file]).hexdigest() != checksum:
            raise OSError(f"{path} has another checksum than it must have")
    return files


def _show_licence(path: Path) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(LICENCE_NOTE)
    except FileExistsError:  # another process has shown it
        return
    print(LICENCE_NOTE, end="", file=sys.stderr)


# Reading the files


def read_interactions(path: Path) -> Events:
    """Read the interactions in any of the layouts; a ``sequences.txt`` has no times, its order is that of time."""
    from data.sequence_files import read_events  # pyarrow, which a filled cache makes unnecessary

    if path.name == "sequences.txt":
        return read_events(path, "sequences")
    return read_events(path, "inter" if path.suffix == ".inter" else "ratings")


def read_films(path: Path) -> dict[str, Film]:
    """Read titles, years and genres by item id; all layouts give the same films."""
    parse = {".item": _u_item, ".dat": _movies_dat}[path.suffix]
    if path.name == "ml-100k.item":
        parse = _atomic_item
    encoding = "utf-8" if parse is _atomic_item else "latin-1"
    try:
        lines = path.read_text(encoding=encoding).split("\n")
    except UnicodeDecodeError as error:
        raise FedMoEError(f"{path}: is not {encoding} text ({error.reason}) - fetch the file again") from error
    films = {}
    skipped = 1 if parse is _atomic_item else 0  # the header
    for number, line in enumerate(lines[skipped:], start=skipped + 1):
        if line.strip():
            try:
                item, film = parse(line)
            except ValueError:
                raise FedMoEError(f"{path}, line {number}: is not a film's line - fetch the file again") from None
            films[item] = film
    return films


def _u_item(line: str) -> tuple[str, Film]:
    """Parse ``id|title (year)|date||address|19 flags``."""
    item, name, _, _, _, *flags = line.rstrip("\r").split("|")
    genres = (genre for genre, flag in zip(_U_ITEM_GENRES, flags, strict=True) if flag == "1")
    return item, _film(*split_year(name), genres)


def _atomic_item(line: str) -> tuple[str, Film]:
    """Parse ``id <tab> title <tab> year <tab> genre genre``."""
    item, name, year, genres = line.rstrip("\r").split("\t")
    # One title has kept its year, with "V" (video) in the column of the year; "unknown" is misspelt.
    title, release = (name, int(year)) if year.isdigit() else split_year(name.replace("unkonwn", "unknown"))
    return item, _film(title, release, genres.split())


def _movies_dat(line: str) -> tuple[str, Film]:
    """Parse ``id::title (year)::genre|genre``."""
    item, rest = line.rstrip("\r").split("::", 1)
    name, genres = rest.rsplit("::", 1)
    return item, _film(*split_year(name), genres.split("|"))


def _film(title: str, year: int | None, genres: Iterable[str]) -> Film:
    return Film(title.strip(), year, tuple(sorted(filter(None, genres))))
