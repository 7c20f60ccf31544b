"""Titles of items: films with year and genres, lists of items, and features made of titles without any model."""

from __future__ import annotations

import re
from collections import Counter
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


Films = Sequence[Film | None]
"""``[num_items + 1]``; entry 0 is the padding and None; None also marks an item without a title."""


def title_features(films: Films) -> ItemFeatures:
    """Describe each film by its genres, its decade and the words of its title, ``[num_items + 1, F]``.

    Each of the three parts has norm 1 where it is not empty, then so has the row.
    """
    return _features(_genres(films), _decades(films), _words(films))


def word_features(films: Films) -> ItemFeatures:
    """Describe each film by the words of its title alone, ``[num_items + 1, WORD_DIM]``."""
    return _features(_words(films))


def attribute_features(films: Films) -> ItemFeatures:
    """Describe each film by its genres and its decade, ``[num_items + 1, genres + decades]``."""
    return _features(_genres(films), _decades(films))


def _features(*parts: NDArray[np.float32]) -> ItemFeatures:
    values = unit_rows(np.concatenate([unit_rows(part) for part in parts], axis=1))
    return ItemFeatures(values, (values != 0).any(axis=1))


def _genres(films: Films) -> NDArray[np.float32]:
    """Return the genres as 0/1, sorted by name, so that the same films give the same features everywhere."""
    places = _positions(genre for film in films if film is not None for genre in film.genres)
    found = np.zeros((len(films), len(places)), np.float32)
    for row, film in enumerate(films):
        if film is not None:
            found[row, [places[genre] for genre in film.genres]] = 1.0
    return found


def _decades(films: Films) -> NDArray[np.float32]:
    """Return the decades as 0/1, sorted."""
    places = _positions(_decade(film) for film in films if film is not None and film.year is not None)
    found = np.zeros((len(films), len(places)), np.float32)
    for row, film in enumerate(films):
        if film is not None and film.year is not None:
            found[row, places[_decade(film)]] = 1.0
    return found


def _words(films: Films) -> NDArray[np.float32]:
    words = [[] if film is None else words_of(film.title) for film in films]
    return hashed_words(words, WORD_DIM, sum(film is not None for film in films))


def hashed_words(words: Sequence[Sequence[str]], buckets: int, known: int) -> NDArray[np.float32]:
    """Return ``[items, buckets]``: each item's words, hashed (CRC-32) with a sign, by inverse document frequency.

    known: items of which a text is known.
    """
    frequency = Counter(word for each in words for word in each)
    found = np.zeros((len(words), buckets), np.float32)
    for row, each in enumerate(words):
        for word in each:
            code = crc32(word.encode())
            sign = 1.0 if code >> 31 else -1.0
            found[row, code % buckets] += sign * (1.0 + np.log(known / frequency[word]))
    return found


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
