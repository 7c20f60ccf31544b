"""The data set of a run, by its settings: ``load_dataset``.

The parsed data set is kept in the cache as arrays, which all processes of a machine open as the same memory map. The
cache's folder ``parsed`` can be deleted whenever no run uses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import cast

from data import dataset as folders
from data import movielens
from data.dataset import Dataset, nobody
from data.features import ItemFeatures, find_id_file, load_features, noise, principal_components
from data.interactions import Codes, Events, from_events, rows_to_keep, time_span, withheld, without_short_users
from data.own_data import own_data, sources_of
from data.sampling import generator
from data.synthetic import synthetic
from data.titles import film_of, read_item_list, title_features
from fedmoe.data_settings import DataSettings
from fedmoe.errors import FedMoEError
from fedmoe.modalities import DEFAULTS, NOISE, TITLES
from fedmoe.settings import Settings

_FORM = 4  # part of the cache's key; a change of what is parsed, or how, must change it
_NOISE_WIDTH = 128  # where features are not reduced
# What a data set itself knows of its items: name of a modality, or "titles" -> how the features are made.
Own = Mapping[str, Callable[[], ItemFeatures]]


def default_cache() -> Path:
    """Return the folder for fetched and parsed data: ``FEDMOE_CACHE``, or ``fedmoe`` in the user's cache folder."""
    if named := os.environ.get("FEDMOE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedmoe"


def load_dataset(settings: Settings, cache: Path | None = None) -> Dataset:
    """Return the data set that the settings describe; the same settings give the same data in every process.

    settings: ``data`` and ``modalities``, and the seed of synthetic data, of noise and of new items.
    cache: folder for fetched and parsed data; None: ``default_cache()``.

    Raises FedMoEError if a file is missing, damaged or does not match the catalogue, or the cache cannot be written.
    """
    data, cache = settings.data, default_cache() if cache is None else cache
    if data.data_dir is not None and not data.data_dir.is_dir():
        raise FedMoEError(f"data.data_dir: {data.data_dir} is no folder - correct it, or leave it out")
    if data.dataset == "catalogue":
        assert data.data_dir is not None  # the settings' own check
        return load_catalogue(settings, data.data_dir)
    sources = _sources(settings, cache)
    folder = cache / "parsed" / f"{data.dataset.rpartition(':')[2]}-{_key(settings, sources)}"
    if not folder.is_dir():
        dataset, own = _histories(settings, sources)
        folders.save_dataset(_with_features(dataset, own, settings, sources), folder)
    dataset = folders.open_dataset(folder, "cached data set", "delete the folder")
    return _without_new_items(dataset, data, settings.seed) if data.new_items else dataset


def _without_new_items(dataset: Dataset, data: DataSettings, seed: int) -> Dataset:
    """Return the data set with a share of its items withheld from the histories, and a line that says so."""
    left, new, dropped = withheld(dataset.interactions, data.new_items, seed, data.min_items)
    note = f"{len(new.items)} of {left.num_items} items withheld from training; {len(new.users)} users have met one"
    reading = "; ".join([dataset.reading, note] if dataset.reading else [note])
    return replace(dataset, interactions=left, new=new, dropped_users=dataset.dropped_users + dropped, reading=reading)


def load_catalogue(settings: Settings, folder: Path) -> Dataset:
    """Open a catalogue that was handed out, with the features of the settings' modalities.

    Raises FedMoEError as ``data.dataset.load_catalogue`` does.
    """
    dataset = folders.load_catalogue(folder)
    known = {name: dataset.features[name] for name in settings.named_modalities if name in dataset.features}
    _require_named(settings, known)
    return replace(dataset, features=known)


def _require_named(settings: Settings, found: Collection[str]) -> None:
    """Raise FedMoEError if there are no features of a modality that the settings name and that is none by default."""
    for name in settings.named_modalities:
        if name not in found and name not in DEFAULTS:
            raise FedMoEError(f"modalities.{name}: the data set has no features of that name - set its file")


def catalogue_from_list(path: Path, settings: Settings) -> Dataset:
    """Return the catalogue of a list of items ``id<tab>title``, with the settings' features, without users.

    Raises FedMoEError if the list cannot be read or names an item twice, or a feature file does not match it.
    """
    item_ids, titles = read_item_list(path)
    own: Own = {TITLES: lambda: title_features([film_of(title) for title in titles])} if any(titles) else {}
    listed = Dataset(path.stem, nobody(item_ids), {}, titles if any(titles) else None)
    return _with_features(listed, own, settings, _feature_files(settings))


def _sources(settings: Settings, cache: Path) -> dict[str, Path]:
    """Return the files that the data set is made of, by what they are."""
    data, sources = settings.data, {}
    if data.dataset == "ml-100k" or data.dataset == "ml-1m":
        sources["events"], sources["films"] = movielens.find_files(
            cast(movielens.Name, data.dataset), data.data_dir, cache
        )
    elif data.dataset == "file":
        assert data.data_file is not None  # the settings' own check
        sources["events"] = _in_data_dir(data, data.data_file)
    elif ":" in data.dataset:
        sources |= sources_of(own_data(data))
    return sources | _feature_files(settings)


def _feature_files(settings: Settings) -> dict[str, Path]:
    """Return ``NAME`` and ``NAME ids``, the files of each modality's features and of their rows' items."""
    data, files = settings.data, {}
    for name, modality in settings.named_modalities.items():
        if modality.path is not None:
            files[name] = _in_data_dir(data, modality.path)
            named = modality.item_id_file or data.item_id_file
            if id_file := find_id_file(files[name], None if named is None else _in_data_dir(data, named)):
                files[f"{name} ids"] = id_file
    return files


def _in_data_dir(data: DataSettings, path: Path) -> Path:
    """Return ``path`` as it is if it exists, else the file of that name in ``data_dir``, if there is one."""
    if not path.exists() and data.data_dir is not None and (data.data_dir / path).exists():
        return data.data_dir / path
    return path


def _key(settings: Settings, sources: Mapping[str, Path]) -> str:
    """Return a short hash of all that decides what the parsed data set is."""
    files = {name: modality.file for name, modality in settings.named_modalities.items()}
    data = settings.data.model_dump(mode="json", exclude={"new_items"})  # they are withheld from what is kept
    parts: dict[str, object] = {"form": _FORM, "settings": data, "modalities": files}
    if settings.data.dataset == "synthetic" or NOISE in files.values():
        parts["seed"] = settings.seed
    for role, path in sources.items():
        try:
            status = path.stat()
        except OSError as error:
            raise FedMoEError(f"{path}: cannot be read ({error.strerror}) - correct the path ({role} file)") from error
        parts[role] = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    return sha256(json.dumps(parts, sort_keys=False).encode()).hexdigest()[:16]


def _histories(settings: Settings, sources: Mapping[str, Path]) -> tuple[Dataset, Own]:
    """Return the data set without features, and what it has of its own."""
    data = settings.data
    if data.dataset == "synthetic":
        interactions, own = synthetic(data.synthetic, settings.seed)
        interactions, dropped = without_short_users(interactions, data.min_items)
        return Dataset("synthetic", interactions, {}, None, dropped), own
    if ":" in data.dataset:
        return _kept(data, data.dataset.rpartition(":")[2], own_data(data).events()), {}
    if "films" not in sources:
        return _own_histories(data, sources["events"]), {}
    events = movielens.read_interactions(sources["events"])
    interactions, dropped = from_events(events.users, events.items, events.times, data.min_items)
    known = movielens.read_films(sources["films"])
    films = [known.get(item) for item in interactions.item_ids.tolist()]
    titles = ["" if film is None else str(film) for film in films]
    return Dataset(data.dataset, interactions, {}, titles, dropped), {TITLES: lambda: title_features(films)}


def _own_histories(data: DataSettings, path: Path) -> Dataset:
    """Return the data set of a file of one's own, with a line that says how the file was read."""
    from data.file_forms import Columns
    from data.sequence_files import read_events  # pyarrow, which a filled cache makes unnecessary

    columns = Columns(data.user_column, data.item_column, data.time_column)
    events = read_events(path, data.data_format, columns)
    named = ", ".join(name for name in columns if name is not None)
    form = events.form if events.form in ("sequences", "ratings") else f"{events.form} ({named})"
    return _kept(data, path.name, events._replace(form=form))


def _kept(data: DataSettings, source: str, events: Events) -> Dataset:
    """Return the data set of what was read from ``source``, as the settings want it, and the line that says so."""
    rows, notes = rows_to_keep(events, data.duplicates, data.repeats)
    users, items = (Codes(each.names, each.rows[rows]) for each in (events.users, events.items))
    times = None if events.times is None else events.times[rows]
    interactions, dropped = from_events(users, items, times, data.min_items)
    if dropped:
        notes.append(f"{dropped} users with fewer than {data.min_items} items left out")
    size = f"{interactions.num_users} users, {interactions.num_items} items, {len(interactions.items)} interactions"
    reading = "; ".join([f"{source} read as {events.form}: {size}", *time_span(times), *notes])
    name = Path(source.removesuffix(".gz")).stem
    return Dataset(name, interactions, {}, None, dropped, reading)


def _with_features(dataset: Dataset, own: Own, settings: Settings, files: Mapping[str, Path]) -> Dataset:
    item_ids, dim, found = dataset.interactions.item_ids, settings.data.feature_dim, {}
    for name, modality in settings.named_modalities.items():
        if name in files:
            found[name] = load_features(files[name], item_ids, files.get(f"{name} ids"))
        elif modality.file == NOISE:
            found[name] = noise(len(item_ids), dim or _NOISE_WIDTH, generator(settings.seed, f"{name} noise"))
        elif make := own.get(modality.file or name):
            found[name] = make()
    _require_named(settings, found)
    known = [f"{name} features of {int(found[name].present.sum())} items" for name in found if name in files]
    dataset = replace(dataset, reading="; ".join([dataset.reading, *known] if dataset.reading else known))
    return replace(dataset, features={name: principal_components(each, dim) for name, each in found.items()})
