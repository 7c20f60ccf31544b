"""The data set of a run, by its settings: ``load_dataset``.

The parsed data set is kept in the cache as arrays, which all processes of a machine open as the same memory map. The
cache's folder ``parsed`` can be deleted whenever no run uses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from data import dataset as folders
from data import movielens
from data.dataset import Dataset, nobody
from data.features import ItemFeatures, find_id_file, load_features, noise, principal_components
from data.interactions import (
    Codes,
    Events,
    from_events,
    rows_to_keep,
    sorted_by_item,
    time_span,
    withheld,
    without_short_users,
)
from data.items.encoded import encoded, picture_stamp
from data.own_data import own_data, sources_of
from data.sampling import generator
from data.synthetic import synthetic
from data.titles import Films, attribute_features, film_of, read_item_list, title_features, word_features
from fedmoe.data_settings import DataSettings
from fedmoe.errors import FedMoEError
from fedmoe.modalities import ATTRIBUTES, DEFAULTS, FILMS, NOISE, TITLES
from fedmoe.settings import Settings

if TYPE_CHECKING:
    from data.items.table import ItemTable

_FORM = 5  # part of the cache's key; a change of what is parsed, or how, must change it
_NOISE_WIDTH = 128  # where features are not reduced
# What a data set itself knows of its items: name of a modality, or "titles" -> how an encoder makes features of it;
# None stands for the encoder that needs no model.
Own = Mapping[str, Callable[[str | None], ItemFeatures]]


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
    folder = cache / "parsed" / f"{data.dataset.rpartition(':')[2]}-{_key(settings, sources, cache)}"
    if not folder.is_dir():
        dataset, own = _histories(settings, sources, cache)
        if "items" in sources:
            dataset, own = _with_items(dataset, own, settings, cache)
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
    with_attributes = settings.data.item_file is not None or settings.data.dataset == "catalogue"
    default = {*DEFAULTS, ATTRIBUTES} if with_attributes else DEFAULTS
    for name in settings.named_modalities:
        if name not in found and name not in default:
            raise FedMoEError(f"modalities.{name}: the data set has no features of that name - set its file")


def catalogue_from_list(path: Path, settings: Settings) -> Dataset:
    """Return the catalogue of a list of items ``id<tab>title``, with the settings' features, without users.

    Raises FedMoEError if the list cannot be read or names an item twice, or a feature file does not match it.
    """
    item_ids, titles = read_item_list(path)
    films = [film_of(title) for title in titles]
    own = _of_films(titles, films, settings, default_cache()) if any(titles) else {}
    listed = Dataset(path.stem, nobody(item_ids), {}, titles if any(titles) else None)
    return _with_features(listed, own, settings, _feature_files(settings))


def _sources(settings: Settings, cache: Path) -> dict[str, Path]:
    """Return the files that the data set is made of, by what they are."""
    data, sources = settings.data, {}
    if data.dataset in FILMS:
        sources["events"], sources["films"] = movielens.find_files(
            cast(movielens.Name, data.dataset), data.data_dir, cache
        )
    elif data.dataset == "file":
        assert data.data_file is not None  # the settings' own check
        sources["events"] = _in_data_dir(data, data.data_file)
    elif ":" in data.dataset:
        sources |= sources_of(own_data(data))
    if data.item_file is not None:
        sources["items"] = _in_data_dir(data, data.item_file)
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


def _key(settings: Settings, sources: Mapping[str, Path], cache: Path) -> str:
    """Return a short hash of all that decides what the parsed data set is."""
    files = {name: (own.file, own.encoder) for name, own in settings.named_modalities.items()}
    data = settings.data.model_dump(mode="json", exclude={"new_items"})  # they are withheld from what is kept
    parts: dict[str, object] = {"form": _FORM, "settings": data, "modalities": files}
    if settings.data.dataset == "synthetic" or any(file == NOISE for file, _ in files.values()):
        parts["seed"] = settings.seed
    for role, path in sources.items():
        try:
            status = path.stat()
        except OSError as error:
            raise FedMoEError(f"{path}: cannot be read ({error.strerror}) - correct the path ({role} file)") from error
        parts[role] = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if "items" in sources:
        parts["pictures"] = picture_stamp(sources["items"], settings.data, cache)
    return sha256(json.dumps(parts, sort_keys=False).encode()).hexdigest()[:16]


def _histories(settings: Settings, sources: Mapping[str, Path], cache: Path) -> tuple[Dataset, Own]:
    """Return the data set without features, and what it has of its own."""
    data = settings.data
    if data.dataset == "synthetic":
        interactions, made = synthetic(data.synthetic, settings.seed)
        interactions, dropped = without_short_users(interactions, data.min_items)
        own = {name: partial(_without_encoder, make) for name, make in made.items()}
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
    return Dataset(data.dataset, interactions, {}, titles, dropped), _of_films(titles, films, settings, cache)


def _of_films(titles: Sequence[str], films: Films, settings: Settings, cache: Path) -> Own:
    """Return how features of films are made: of their titles, by words or an encoder, and of genres and decades."""
    apart = ATTRIBUTES in settings.named_modalities
    made = partial(word_features if apart else title_features, films)
    own: Own = {TITLES: lambda encoder: encoded("text", titles, encoder, cache) if encoder else made()}
    if not any(film is not None and (film.genres or film.year is not None) for film in films):
        return own
    return {**own, ATTRIBUTES: partial(_without_encoder, partial(attribute_features, films))}


def _without_encoder(make: Callable[[], ItemFeatures], encoder: str | None) -> ItemFeatures:
    if encoder:
        raise FedMoEError(f"encoder '{encoder}': the data set has features of its own and nothing to encode")
    return make()


def item_table(settings: Settings, dataset: Dataset) -> ItemTable:
    """Return what ``data.item_file`` says of a data set's items. Raises FedMoEError as ``read_items`` does."""
    from data.items.table import read_items  # pyarrow, which a filled cache makes unnecessary

    if settings.data.item_file is None:
        raise FedMoEError("data.item_file is not set: name a table of the items")
    path = _in_data_dir(settings.data, settings.data.item_file)
    return read_items(path, dataset.interactions.item_ids.tolist(), settings.data)


def _with_items(dataset: Dataset, own: Own, settings: Settings, cache: Path) -> tuple[Dataset, Own]:
    """Return the data set with the titles of a table of items, and what the table's columns offer."""
    table = item_table(settings, dataset)
    offered: dict[str, tuple[str, Sequence[Any]]] = {
        TITLES: ("text", table.texts),
        ATTRIBUTES: ("attributes", table.attributes),
        "visual": ("picture", table.pictures),
    }
    made = {name: _encoding(what, inputs, cache) for name, (what, inputs) in offered.items() if any(inputs)}
    reading = "; ".join(filter(None, [dataset.reading, table.reading]))
    return replace(dataset, titles=table.titles, reading=reading), {**own, **made}


def _encoding(what: str, inputs: Sequence[Any], cache: Path) -> Callable[[str | None], ItemFeatures]:
    return lambda encoder: encoded(what, inputs, encoder, cache)


def _own_histories(data: DataSettings, path: Path) -> Dataset:
    """Return the data set of a file of one's own, with a line that says how the file was read."""
    from data.file_forms import Columns
    from data.sequence_files import read_events  # pyarrow, which a filled cache makes unnecessary

    columns = Columns(data.user_column, data.item_column, data.time_column, data.time_format)
    events = read_events(path, data.data_format, columns, data.incomplete)
    named = ", ".join(columns.names)
    form = events.form if events.form in ("sequences", "ratings") else f"{events.form} ({named})"
    return _kept(data, path.name, events._replace(form=form))


def _kept(data: DataSettings, source: str, events: Events) -> Dataset:
    """Return the data set of what was read from ``source``, as the settings want it, and the line that says so."""
    rows, notes = rows_to_keep(events, data.duplicates, data.repeats)
    if events.left_out:
        notes.insert(0, f"{events.left_out} rows without user, item or time left out")
    users, items = (Codes(each.names, each.rows[rows]) for each in (events.users, events.items))
    times = None if events.times is None else events.times[rows]
    interactions, dropped = from_events(users, items, times, data.min_items)
    if dropped:
        notes.append(f"{dropped} users with fewer than {data.min_items} items left out")
    if times is None:
        notes += sorted_by_item(interactions)
    size = f"{interactions.num_users} users, {interactions.num_items} items, {len(interactions.items)} interactions"
    reading = "; ".join([f"{source} read as {events.form}: {size}", *time_span(times), *notes])
    name = Path(source.removesuffix(".gz")).stem
    return Dataset(name, interactions, {}, None, dropped, reading)


def _with_features(dataset: Dataset, own: Own, settings: Settings, files: Mapping[str, Path]) -> Dataset:
    item_ids, dim = dataset.interactions.item_ids, settings.data.feature_dim
    found: dict[str, ItemFeatures] = {}
    notes = [dataset.reading] if dataset.reading else []
    for name, modality in settings.named_modalities.items():
        if name in files:
            found[name] = load_features(files[name], item_ids, files.get(f"{name} ids"))
            notes.append(f"{name} features of {int(found[name].present.sum())} items")
        elif modality.file == NOISE:
            found[name] = noise(len(item_ids), dim or _NOISE_WIDTH, generator(settings.seed, f"{name} noise"))
        elif make := own.get(modality.file or name):
            found[name] = make(modality.encoder)
            if "items" in files or modality.encoder:
                notes.append(_coverage(name, found[name], modality.encoder))
    _require_named(settings, found)
    dataset = replace(dataset, reading="; ".join(notes))
    return replace(dataset, features={name: principal_components(each, dim) for name, each in found.items()})


def _coverage(name: str, features: ItemFeatures, encoder: str | None) -> str:
    """Return which encoder made a modality's features, and how many items have none."""
    known, all_items = int(features.present.sum()), len(features.present) - 1
    plain = {ATTRIBUTES: "frequency", "visual": "thumbnails"}.get(name, "words")
    return f"{name} by {encoder or plain} of {known} items, {all_items - known} have none"
