"""Titles of items: films with year and genres, lists of items, and features made of titles without any model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from data.features import ItemFeatures
from data.interactions import id_order
from fedmoe.errors import FedMoEError

WORD_DIM = 128  # buckets of hashed title words
_TITLE_YEAR = re.compile(r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)")
_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS = frozenset(("a", "an", "and", "de", "der", "die", "in", "la", "le", "les", "of", "the", "to"))


@dataclass(frozen=True)
class Film:
    """One film: title, year of release (None if unknown) and genres."""

    title: str
    year: int | None
    genres: tuple[str, ...]

    def __str__(self) -> str:
        """Return ``title (year), genre, genre``, the string that text encoders get."""
        name = self.title if self.year is None else f"{self.title} ({self.year})"
        return ", ".join([name, *self.genres])


def split_year(name: str) -> tuple[str, int | None]:
    """Split ``"Heat (1995)"`` into title and year; without a year in brackets the year is None."""
    found = _TITLE_YEAR.match(name)
    return (found["title"], int(found["year"])) if found else (name.strip(), None)


def title_features(films: Sequence[Film | None]) -> ItemFeatures:
    """Describe each film by its genres, its decade and the words of its title.

    A row holds the genres and the decade as 0/1 and the title's words hashed into ``WORD_DIM`` buckets with a sign and
    their inverse document frequency; each of the three parts has norm 1 where it is not empty, then so has the row.
    The hash is CRC-32 and genres and decades are sorted, so the same films give the same features everywhere.

    Args:
        films: ``[num_items + 1]``; entry 0 is the padding and None; None also marks an item without a title.

    Returns:
        Features of width ``genres + decades + WORD_DIM``.
    """
    known = [film for film in films if film is not None]
    genres = _positions(genre for film in known for genre in film.genres)
    decades = _positions(_decade(film) for film in known if film.year is not None)
    words = {film: words_of(film.title) for film in set(known)}
    frequency: dict[str, int] = {}
    for film in known:
        for word in words[film]:
            frequency[word] = frequency.get(word, 0) + 1

    parts = [np.zeros((len(films), width), np.float32) for width in (len(genres), len(decades), WORD_DIM)]
    for row, film in ((row, film) for row, film in enumerate(films) if film is not None):
        parts[0][row, [genres[genre] for genre in film.genres]] = 1.0
        if film.year is not None:
            parts[1][row, decades[_decade(film)]] = 1.0
        for word in words[film]:
            code = crc32(word.encode())
            sign = 1.0 if code >> 31 else -1.0
            parts[2][row, code % WORD_DIM] += sign * (1.0 + np.log(len(known) / frequency[word]))
    values = unit_rows(np.concatenate([unit_rows(part) for part in parts], axis=1))
    return ItemFeatures(values, (values != 0).any(axis=1))


def _positions(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(sorted(set(names)))}


def _decade(film: Film) -> str:
    return f"{(film.year or 0) // 10 * 10}"


def words_of(title: str) -> list[str]:
    """Return the distinct words of a title in lower case, sorted, without stop words."""
    return sorted(set(_WORD.findall(title.lower())) - _STOP_WORDS)


def unit_rows(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row to norm 1; rows of zeros stay."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def read_item_list(path: Path) -> tuple[NDArray[np.str_], list[str]]:
    """Read a list of items, ``id<tab>title`` a line.

    A title may be left out, or end in a year and genres as ``title (1995), Drama, Comedy``.

    Returns:
        The ids ``[num_items + 1]`` in the order of a catalogue, "" for the padding first, and the items' titles, ""
        where there is none.

    Raises:
        FedMoEError: the list cannot be read, has no items, or names one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedMoEError(f"{path}: the list of items cannot be read ({error}) - 'id<tab>title' a line") from error
    titles: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        item, _, title = line.partition("\t")
        item = item.strip()
        if not item and not title.strip():
            continue
        if not item or len(item.split()) > 1:
            raise FedMoEError(
                f"{path}, line {number}: '{item}' is no item id - 'id<tab>title' a line, an id is one word"
            )
        if item in titles:
            raise FedMoEError(f"{path}, line {number}: item {item} is there already - keep one")
        titles[item] = title.strip()
    if not titles:
        raise FedMoEError(f"{path}: the list has no items - 'id<tab>title' a line")
    names = np.array(list(titles), dtype=np.str_)
    item_ids = np.concatenate([np.array([""]), names[id_order(names)]])
    return item_ids, [titles.get(item, "") for item in item_ids.tolist()]


def film_of(title: str) -> Film | None:
    """Return what a title ``name (year), genre, genre`` says; None if it is empty."""
    if not title:
        return None
    name, year = split_year(title)
    _, _, genres = title.partition(f"({year}), ")
    return Film(name, year, tuple(genres.split(", ")) if year is not None and genres else ())
