"""Whether a client and the server speak of the same catalogue and the same model. No torch here.

Both describe themselves by ``catalogue``, ``text`` and ``visual`` (hashes of the contents) and ``model`` (the version).
The server's description comes with its query, the first message of a run to a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.catalogue_folder import ABOUT, fingerprints, load_catalogue
from data.registry import Dataset, load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from model.version import model_version

WORDS = {
    "catalogue": "catalogue of items",
    "text": "text features",
    "visual": "visual features",
    "model": "model version",
}


def own_dataset(settings: Settings, catalogue: Path | None) -> Dataset:
    """Return the client's catalogue: the folder's, or else the whole data set of the settings."""
    return load_dataset(settings.data, settings.seed) if catalogue is None else load_catalogue(catalogue)


def catalogue_stamp(catalogue: Path | None) -> tuple[int, int]:
    """Return what changes when a catalogue folder is replaced by another one."""
    if catalogue is None:
        return 0, 0
    try:
        status = (catalogue / ABOUT).stat()
    except OSError:
        return 0, 0  # loading it says what is wrong
    return status.st_ino, status.st_mtime_ns


def identity_of(settings: Settings, dataset: Dataset) -> dict[str, str]:
    """Describe a client by the hashes of its catalogue and features, and its model's version."""
    version = model_version(settings.model, dataset.interactions.num_items, dataset.text, dataset.visual)
    return fingerprints(dataset) | {"model": version}


def refuse_other(server: Mapping[str, Any], client: Mapping[str, str]) -> None:
    """Raise FedMoEError with the server's and the client's value of the first thing in which they differ."""
    for key, words in WORDS.items():
        if key in server and server[key] != client[key]:
            raise FedMoEError(
                f"the client's {words} is not the server's: {server[key]} at the server, {client[key]} at the client - "
                "give the node the server's catalogue (catalogue=FOLDER) and settings"
            )


def item_numbers(dataset: Dataset) -> dict[str, int]:
    """Return item id -> number in the catalogue, 1 to num_items."""
    return {item: number for number, item in enumerate(dataset.interactions.item_ids.tolist()) if number}


@lru_cache(maxsize=1)
def described(document: str, catalogue: Path | None) -> tuple[Dataset, dict[str, str]]:
    """Return the catalogue and the identity for a run's settings, given as JSON; made once for many queries."""
    settings = Settings.model_validate_json(document)
    dataset = own_dataset(settings, catalogue)
    return dataset, identity_of(settings, dataset)
