"""Whether a client and the server speak of the same catalogue and the same model. No torch here.

Both describe themselves by ``catalogue`` and ``NAME-features`` of each modality (hashes of the contents), and by
``model`` (the version).
The server's description comes with its query, the first message of a run to a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.dataset import ABOUT, Dataset
from data.registry import load_catalogue, load_dataset
from fedmoe.errors import TellableError
from fedmoe.settings import Settings
from model.version import model_version

FEATURES = "-features"
WORDS = {"catalogue": "catalogue of items", "model": "model version"}


def own_dataset(settings: Settings, catalogue: Path | None) -> Dataset:
    """Return the client's catalogue: the folder's, or else the whole data set of the settings."""
    return load_dataset(settings) if catalogue is None else load_catalogue(settings, catalogue)


def catalogue_stamp(catalogue: Path) -> tuple[int, int]:
    """Return what changes when a catalogue folder is replaced by another one."""
    try:
        status = (catalogue / ABOUT).stat()
    except OSError:
        return 0, 0  # loading it says what is wrong
    return status.st_ino, status.st_mtime_ns


def identity_of(settings: Settings, dataset: Dataset) -> dict[str, str]:
    """Describe a client by the hashes of its catalogue and features, and its model's version."""
    return dataset.fingerprints() | {"model": model_version(settings, dataset)}


def refuse_other(server: Mapping[str, Any], client: Mapping[str, str]) -> None:
    """Raise TellableError with the server's and the client's value of the first thing in which they differ."""
    features = sorted(key for key in server.keys() | client.keys() if key.endswith(FEATURES))
    for key in ("catalogue", *features, "model"):
        theirs, own = server.get(key, "none"), client.get(key, "none")
        if theirs != own:
            what = WORDS.get(key, key.replace("-", " "))
            raise TellableError(
                f"the client's {what} is not the server's: {theirs} at the server, {own} at the client - "
                "give the node the server's catalogue (catalogue=FOLDER) and settings"
            )


def refuse_other_version(server: str, client: str) -> None:
    """Raise TellableError with both versions of FedMoE if they differ in more than their last number; "": not known."""
    if server and client and server.split(".")[:2] != client.split(".")[:2]:
        raise TellableError(
            f"the client was started by FedMoE {client} and the server is {server}: install {server} on the client, "
            "and start it again"
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
