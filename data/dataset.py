"""A data set: histories, titles and features of the items; kept as a folder of arrays, and told apart by hashes.

The folder holds ``about.json``, ``NAME_values.npy`` and ``NAME_present.npy`` of each modality, and the arrays of the
histories. A catalogue that is handed to clients is such a folder of a data set without users. Features are in it as the
model gets them, so that two machines that have the folder have the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.features import ItemFeatures
from data.sampling import Interactions, Negatives, NewItems
from fedmoe.errors import FedMoEError
from fedmoe.files import write_folder

FORMAT = 2
ABOUT = "about.json"
_HISTORIES = ("items", "offsets", "user_ids", "item_ids")


@dataclass(frozen=True)
class Dataset:
    """Histories and what is known of the items. Arrays of a loaded data set are read-only memory maps.

    Attributes:
        name: name of the data set, for people.
        interactions: the histories.
        features: name of a modality -> the items' features, in the order of the settings.
        titles: ``[num_items + 1]`` strings ``title (year), genre, genre``, "" where unknown; None without titles.
        dropped_users: number of users left out because their history was shorter than ``min_items``.
        reading: one line that says how files of histories and of features were read; "" without any.
        new: items that are in no history, and who met them; None: no item was withheld.
    """

    name: str
    interactions: Interactions
    features: Mapping[str, ItemFeatures]
    titles: list[str] | None = None
    dropped_users: int = 0
    reading: str = ""
    new: NewItems | None = None

    @property
    def negatives(self) -> Negatives:
        """What negatives are drawn from: no item that was withheld."""
        size = self.interactions.num_items
        return Negatives(size) if self.new is None else Negatives(size, self.new.items)

    def without_histories(self) -> Dataset:
        """Return the catalogue alone, as a data set without users."""
        return replace(self, interactions=nobody(self.interactions.item_ids), dropped_users=0, reading="", new=None)

    def fingerprints(self) -> dict[str, str]:
        """Return a hash of the catalogue's items, and one of each modality's features as ``NAME-features``.

        They cover content alone: where the files lie, and titles, which no model sees, do not matter.
        """
        items = sha256("\n".join(self.interactions.item_ids.tolist()).encode()).hexdigest()[:16]
        return {"catalogue": items} | {f"{name}-features": _hash(found) for name, found in self.features.items()}

    def all_fingerprints(self) -> dict[str, str]:
        """Return ``fingerprints`` with one of the histories, where there are any."""
        own = self.interactions
        digest = sha256("\n".join(own.user_ids.tolist()).encode())
        for array in (own.items, own.offsets):
            digest.update(np.ascontiguousarray(array).data)
        return ({"histories": digest.hexdigest()[:16]} if own.num_users else {}) | self.fingerprints()


def nobody(item_ids: NDArray[np.str_]) -> Interactions:
    """Return the histories of no user, over a catalogue of ids ``[num_items + 1]``."""
    return Interactions(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.str_), item_ids)


def _hash(features: ItemFeatures) -> str:
    digest = sha256(repr(features.values.shape).encode())
    arrays: tuple[NDArray[np.generic], ...] = (features.values, features.present)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """Write a data set as a folder; if another process has made the folder in the meantime, that one stays."""
    write_folder(folder, lambda temporary: _fill(dataset, temporary))


def save_catalogue(dataset: Dataset, folder: Path) -> None:
    """Write the catalogue of a data set, without its histories, into a folder that does not exist yet.

    Raises FedMoEError if it exists or cannot be written.
    """
    if folder.exists():
        raise FedMoEError(f"{folder} exists already - name another folder for the catalogue, or remove it")
    save_dataset(dataset.without_histories(), folder)


def _fill(dataset: Dataset, folder: Path) -> None:
    for name in _HISTORIES:
        np.save(folder / f"{name}.npy", getattr(dataset.interactions, name))
    for modality, features in dataset.features.items():
        np.save(folder / f"{modality}_values.npy", features.values)
        np.save(folder / f"{modality}_present.npy", features.present)
    about = {
        "format": FORMAT,
        "name": dataset.name,
        "modalities": list(dataset.features),
        "titles": dataset.titles,
        "dropped_users": dataset.dropped_users,
        "reading": dataset.reading,
    }
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def open_dataset(folder: Path, what: str, remedy: str) -> Dataset:
    """Open what ``save_dataset`` wrote; its arrays are read-only memory maps.

    Raises FedMoEError, with the words for the folder and the remedy, if it is missing, damaged or of another format.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about.get("format") != FORMAT:
            raise ValueError(f"format {about.get('format')}, this version reads {FORMAT}")
        interactions = Interactions(*(_map(folder / f"{name}.npy") for name in _HISTORIES))
        features = {
            name: ItemFeatures(_map(folder / f"{name}_values.npy"), _map(folder / f"{name}_present.npy"))
            for name in about["modalities"]
        }
        rows = len(interactions.item_ids)
        for name, each in {
            "titles": about["titles"],
            **{f"{name} features": each.values for name, each in features.items()},
        }.items():
            if each is not None and len(each) != rows:
                raise ValueError(f"{name} have {len(each)} rows, the catalogue has {rows}")
        dropped, reading = about["dropped_users"], about.get("reading", "")
        return Dataset(str(about["name"]), interactions, features, about["titles"], dropped, reading)
    except (FedMoEError, OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise FedMoEError(f"{what} {folder} cannot be read ({error}) - {remedy}") from error


def load_catalogue(folder: Path) -> Dataset:
    """Open what ``save_catalogue`` wrote, as a data set without users.

    Raises FedMoEError if the folder is missing, damaged or of another format.
    """
    return open_dataset(folder, "catalogue", "make it with: python -m fedmoe_server catalogue")


def _map(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
