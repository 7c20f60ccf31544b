"""A catalogue as a folder that can be handed to clients: items, titles and features, and nobody's history.

``item_ids.npy``, ``about.json`` (name and titles), and for each modality that exists ``text_values.npy`` with
``text_present.npy``, and ``visual_...`` likewise. Features are in it as the model gets them, so that two machines that
have the folder have the same bits; ``fingerprints`` tells whether they do.
"""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.catalogue import ItemFeatures
from data.files import write_folder
from data.interactions import Interactions
from data.registry import Dataset
from fedmoe.errors import FedMoEError

FORMAT = 1
ABOUT = "about.json"


def save_catalogue(dataset: Dataset, folder: Path) -> None:
    """Write the catalogue of a data set into a folder that does not exist yet.

    Raises FedMoEError if it exists or cannot be written.
    """
    if folder.exists():
        raise FedMoEError(f"{folder} exists already - name another folder for the catalogue, or remove it")
    write_folder(folder, lambda temporary: _fill(dataset, temporary))


def _fill(dataset: Dataset, folder: Path) -> None:
    np.save(folder / "item_ids.npy", dataset.interactions.item_ids)
    for modality, features in _modalities(dataset).items():
        if features is not None:
            np.save(folder / f"{modality}_values.npy", features.values)
            np.save(folder / f"{modality}_present.npy", features.present)
    about = {"format": FORMAT, "name": dataset.name, "titles": dataset.titles}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def load_catalogue(folder: Path) -> Dataset:
    """Open what ``save_catalogue`` wrote, as a data set without users; features are read-only memory maps.

    Raises FedMoEError if the folder is missing, damaged or of another format.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
        item_ids = np.load(folder / "item_ids.npy", allow_pickle=False)
        nobody = Interactions(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.str_), item_ids)
        text, visual = (_features(folder, modality, len(item_ids)) for modality in ("text", "visual"))
        titles = about["titles"]
        if titles is not None and len(titles) != len(item_ids):
            raise ValueError(f"{len(titles)} titles for {len(item_ids)} rows")
        return Dataset(str(about["name"]), nobody, titles, text, visual, 0)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise FedMoEError(
            f"catalogue {folder} cannot be read ({error}) - make it with: python -m fedmoe_server catalogue"
        ) from error


def _features(folder: Path, modality: str, rows: int) -> ItemFeatures | None:
    values, present = folder / f"{modality}_values.npy", folder / f"{modality}_present.npy"
    if not values.is_file():
        return None
    features = ItemFeatures(np.load(values, mmap_mode="r"), np.load(present, mmap_mode="r"))
    if len(features.values) != rows:
        raise ValueError(f"{modality} features have {len(features.values)} rows, the catalogue has {rows}")
    return features


def without_histories(dataset: Dataset) -> Dataset:
    """Return a data set's catalogue as a data set without users."""
    known = dataset.interactions
    nobody = Interactions(known.items[:0], np.zeros(1, np.int64), known.user_ids[:0], known.item_ids)
    return replace(dataset, interactions=nobody, dropped_users=0)


def fingerprints(dataset: Dataset) -> dict[str, str]:
    """Return a hash of the catalogue's items, and of each modality's features ("none" without the modality).

    It covers content alone: where the files lie, and titles, which no model sees, do not matter.
    """
    items = sha256("\n".join(dataset.interactions.item_ids.tolist()).encode()).hexdigest()[:16]
    return {"catalogue": items} | {name: _feature_hash(found) for name, found in _modalities(dataset).items()}


def _feature_hash(features: ItemFeatures | None) -> str:
    if features is None:
        return "none"
    digest = sha256(repr(features.values.shape).encode())
    arrays: tuple[NDArray[np.generic], ...] = (features.values, features.present)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _modalities(dataset: Dataset) -> dict[str, ItemFeatures | None]:
    return {"text": dataset.text, "visual": dataset.visual}
