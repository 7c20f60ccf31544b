"""The data set of a run, by its settings: ``load_dataset``.

The parsed data set is kept in the cache as arrays, which all processes of a machine open as the same memory map. The
cache's folder ``parsed`` can be deleted whenever no run uses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from data import movielens
from data.catalogue import ItemFeatures, find_id_file, load_features
from data.files import write_folder
from data.interactions import Interactions, from_events, without_short_users
from data.reduction import principal_components
from data.sampling import generator
from data.synthetic import synthetic
from data.titles import Film, title_features
from fedmoe.errors import FedMoEError
from fedmoe.settings import DataSettings

_FORM = 2  # part of the cache's key; a change of what is parsed, or how, must change it
_TITLES = "titles"
_NOISE = "noise"  # instead of a feature file: random rows, to see what the real ones are worth


@dataclass(frozen=True)
class Dataset:
    """Histories and what is known of the items.

    Arrays of a loaded data set are read-only memory maps.

    Attributes:
        name: name of the data set, for people.
        interactions: the histories.
        titles: ``[num_items + 1]`` strings ``title (year), genre, genre``, "" where unknown; None without titles.
        text: text features, or None.
        visual: visual features, or None.
        dropped_users: number of users left out because their history was shorter than ``min_items``.
    """

    name: str
    interactions: Interactions
    titles: list[str] | None
    text: ItemFeatures | None
    visual: ItemFeatures | None
    dropped_users: int


def default_cache() -> Path:
    """Return the folder for fetched and parsed data: ``FEDMOE_CACHE``, or ``fedmoe`` in the user's cache folder."""
    if named := os.environ.get("FEDMOE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedmoe"


def load_dataset(settings: DataSettings, seed: int, cache: Path | None = None) -> Dataset:
    """Return the data set that the settings describe; the same arguments give the same data in every process.

    Args:
        settings: see ``DataSettings``.
        seed: seed of the synthetic data set; the others do not depend on it.
        cache: folder for fetched and parsed data; None: ``default_cache()``.

    Raises:
        FedMoEError: a file is missing, damaged or does not match the catalogue, or the cache cannot be written.
    """
    cache = default_cache() if cache is None else cache
    if settings.data_dir is not None and not settings.data_dir.is_dir():
        raise FedMoEError(f"data.data_dir: {settings.data_dir} is no folder - correct it, or leave it out")
    if settings.dataset == "catalogue":
        from data.catalogue_folder import load_catalogue  # which knows the data sets of this module

        assert settings.data_dir is not None  # the settings' own check
        return load_catalogue(settings.data_dir)
    sources = _sources(settings, cache)
    folder = cache / "parsed" / f"{settings.dataset}-{_key(settings, seed, sources)}"
    if not folder.is_dir():
        dataset = _build(settings, seed, sources)
        write_folder(folder, lambda temporary: _save(dataset, temporary))
    return _open(folder)


# From the sources


def _sources(settings: DataSettings, cache: Path) -> dict[str, Path]:
    """Return the files that the data set is made of, by what they are."""
    sources = {}
    if settings.dataset in ("ml-100k", "ml-1m"):
        name: movielens.Name = "ml-100k" if settings.dataset == "ml-100k" else "ml-1m"
        sources["events"], sources["films"] = movielens.find_files(name, settings.data_dir, cache)
    elif settings.dataset == "file":
        assert settings.data_file is not None  # the settings' own check
        sources["events"] = _in_data_dir(settings, settings.data_file)
    if settings.visual_file not in (None, _NOISE):
        sources["visual"] = _in_data_dir(settings, Path(str(settings.visual_file)))
    if settings.text_file not in (None, _TITLES, _NOISE):
        sources["text"] = _in_data_dir(settings, Path(str(settings.text_file)))
    named = None if settings.item_id_file is None else _in_data_dir(settings, settings.item_id_file)
    for modality in ("visual", "text"):
        if modality in sources and (id_file := find_id_file(sources[modality], named)):
            sources[f"{modality} ids"] = id_file
    return sources


def _in_data_dir(settings: DataSettings, path: Path) -> Path:
    """Return ``path`` as it is if it exists, else the file of that name in ``data_dir``, if there is one."""
    if not path.exists() and settings.data_dir is not None and (settings.data_dir / path).exists():
        return settings.data_dir / path
    return path


def _key(settings: DataSettings, seed: int, sources: Mapping[str, Path]) -> str:
    """Return a short hash of all that decides what the parsed data set is."""
    parts: dict[str, object] = {"form": _FORM, "settings": settings.model_dump(mode="json")}
    if settings.dataset == "synthetic" or _NOISE in (settings.text_file, settings.visual_file):
        parts["seed"] = seed
    for role, path in sources.items():
        try:
            status = path.stat()
        except OSError as error:
            raise FedMoEError(f"{path}: cannot be read ({error.strerror}) - correct the path ({role} file)") from error
        parts[role] = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _build(settings: DataSettings, seed: int, sources: Mapping[str, Path]) -> Dataset:
    if settings.dataset == "synthetic":
        dataset = _build_synthetic(settings, seed)
    else:
        dataset = _build_from_files(settings, sources)
    item_ids = dataset.interactions.item_ids
    if "visual" in sources:
        dataset = replace(dataset, visual=load_features(sources["visual"], item_ids, sources.get("visual ids")))
    if "text" in sources:
        dataset = replace(dataset, text=load_features(sources["text"], item_ids, sources.get("text ids")))
    if settings.text_file == _NOISE:
        dataset = replace(dataset, text=_noise(len(item_ids), settings.feature_dim, seed, "text"))
    if settings.visual_file == _NOISE:
        dataset = replace(dataset, visual=_noise(len(item_ids), settings.feature_dim, seed, "visual"))
    return replace(dataset, text=_reduced(dataset.text, settings), visual=_reduced(dataset.visual, settings))


def _noise(rows: int, dim: int, seed: int, modality: str) -> ItemFeatures:
    """Return features of every item that say nothing about it."""
    present = np.arange(rows) > 0
    drawn = generator(seed, f"{modality} noise").normal(size=(rows, dim or 128)).astype(np.float32)
    return ItemFeatures(drawn * present[:, None], present)


def _reduced(features: ItemFeatures | None, settings: DataSettings) -> ItemFeatures | None:
    return None if features is None else principal_components(features, settings.feature_dim)


def _build_synthetic(settings: DataSettings, seed: int) -> Dataset:
    interactions, visual, text = synthetic(settings.synthetic, seed)
    interactions, dropped = without_short_users(interactions, settings.min_items)
    return Dataset("synthetic", interactions, None, text if settings.text_file == _TITLES else None, visual, dropped)


def _build_from_files(settings: DataSettings, sources: Mapping[str, Path]) -> Dataset:
    films = None
    if "films" in sources:
        events = movielens.read_interactions(sources["events"])
        films = movielens.read_films(sources["films"])
    else:
        from data.sequence_files import Columns, read_events  # pyarrow, which a filled cache makes unnecessary

        columns = Columns(settings.user_column, settings.item_column, settings.time_column)
        events = read_events(sources["events"], settings.data_format, columns)
    interactions, dropped = from_events(events.users, events.items, events.times, settings.min_items)
    name = sources["events"].stem if settings.dataset == "file" else settings.dataset
    if films is None:
        return Dataset(name, interactions, None, None, None, dropped)
    in_order: list[Film | None] = [films.get(item) for item in interactions.item_ids.tolist()]
    titles = ["" if film is None else str(film) for film in in_order]
    text = title_features(in_order) if settings.text_file == _TITLES else None
    return Dataset(name, interactions, titles, text, None, dropped)


# To and from the cache


def _save(dataset: Dataset, folder: Path) -> None:
    dataset.interactions.save(folder / "interactions")
    for modality, features in (("text", dataset.text), ("visual", dataset.visual)):
        if features is not None:
            np.save(folder / f"{modality}_values.npy", features.values)
            np.save(folder / f"{modality}_present.npy", features.present)
    about = {"name": dataset.name, "titles": dataset.titles, "dropped_users": dataset.dropped_users}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _open(folder: Path) -> Dataset:
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return Dataset(
            interactions=Interactions.load(folder / "interactions"),
            text=_open_features(folder, "text"),
            visual=_open_features(folder, "visual"),
            **about,
        )
    except (FedMoEError, OSError, ValueError, TypeError, EOFError) as error:
        raise FedMoEError(f"{folder}: the cached data set is damaged ({error}) - delete the folder") from error


def _open_features(folder: Path, modality: str) -> ItemFeatures | None:
    values, present = folder / f"{modality}_values.npy", folder / f"{modality}_present.npy"
    if not values.is_file():
        return None
    return ItemFeatures(np.load(values, mmap_mode="r"), np.load(present, mmap_mode="r"))
