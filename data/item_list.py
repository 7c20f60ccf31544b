"""A catalogue from a list of items, where no one has histories to make it of: ``id<tab>title`` a line.

The title is optional, and may end in a year and genres as ``title (1995), Drama, Comedy``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.catalogue import ItemFeatures, find_id_file, load_features
from data.interactions import Interactions, id_order
from data.reduction import principal_components
from data.registry import Dataset
from data.titles import Film, split_year, title_features
from fedmoe.errors import FedMoEError
from fedmoe.settings import DataSettings


def catalogue_from_list(path: Path, settings: DataSettings) -> Dataset:
    """Return the catalogue of a list of items, with the features that the settings name, as a data set without users.

    ``text_file: titles`` makes text features of the titles, where there are any.

    Raises:
        FedMoEError: the list cannot be read, names an item twice, or a feature file does not match it.
    """
    titles = _read(path)
    names = np.array(list(titles), dtype=np.str_)
    item_ids = np.concatenate([np.array([""]), names[id_order(names)]])
    in_order = [titles.get(item, "") for item in item_ids.tolist()]
    films = [_film(title) for title in in_order]
    named = any(in_order)
    if settings.text_file == "titles":
        text = title_features(films) if named else None
    else:
        text = _features(settings.text_file, item_ids, settings)
    visual = _features(settings.visual_file, item_ids, settings)
    nobody = Interactions(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.str_), item_ids)
    reduced = [None if found is None else principal_components(found, settings.feature_dim) for found in (text, visual)]
    return Dataset(path.stem, nobody, in_order if named else None, reduced[0], reduced[1], 0)


def _read(path: Path) -> dict[str, str]:
    """Return id -> title of every line."""
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
    return titles


def _film(title: str) -> Film | None:
    if not title:
        return None
    name, year = split_year(title)
    _, _, genres = title.partition(f"({year}), ")
    return Film(name, year, tuple(genres.split(", ")) if year is not None and genres else ())


def _features(file: str | None, item_ids: np.ndarray, settings: DataSettings) -> ItemFeatures | None:
    if file is None:
        return None
    path = Path(file)
    if not path.exists() and settings.data_dir is not None:
        path = settings.data_dir / path
    return load_features(path, item_ids, find_id_file(path, settings.item_id_file))
