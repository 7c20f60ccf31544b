"""A data set as a folder: what comes back, what is refused, hashes of its contents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.dataset import Dataset, load_catalogue, open_dataset, save_catalogue, save_dataset
from data.features import ItemFeatures
from data.interactions import from_events
from fedmoe.errors import FedMoEError


def small() -> Dataset:
    interactions, _ = from_events(np.array([1, 1, 2]), np.array([5, 6, 5]), None, 1)
    values = np.array([[0, 0], [1, 2], [3, 4]], np.float32)
    features = ItemFeatures(values, np.array([False, True, True]))
    return Dataset("small", interactions, {"sound": features, "shape": features}, ["", "a", "b"], 3)


def test_a_saved_data_set_opens_as_memory_maps(tmp_path: Path) -> None:
    save_dataset(small(), tmp_path / "folder")
    found = open_dataset(tmp_path / "folder", "data set", "make it again")
    histories = found.interactions
    assert isinstance(histories.items, np.memmap) and not histories.items.flags.writeable
    assert type(histories.history(0)) is np.ndarray
    assert [histories.history(user).tolist() for user in range(2)] == [[1, 2], [1]]
    assert (found.name, found.titles, found.dropped_users) == ("small", ["", "a", "b"], 3)
    assert list(found.features) == ["sound", "shape"]
    assert found.features["sound"].values.tolist() == [[0, 0], [1, 2], [3, 4]]
    assert found.fingerprints() == small().fingerprints()


def test_a_catalogue_holds_nobodys_history(tmp_path: Path) -> None:
    save_catalogue(small(), tmp_path / "folder")
    found = load_catalogue(tmp_path / "folder")
    assert (found.interactions.num_users, len(found.interactions.items), found.interactions.num_items) == (0, 0, 2)
    assert found.fingerprints() == small().fingerprints()
    with pytest.raises(FedMoEError, match="exists already"):
        save_catalogue(small(), tmp_path / "folder")


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("items.npy", np.array([1], np.int32), "do not fit together: 2 users, 3 offsets up to 3, 1 items"),
        ("items.npy", None, "cannot be read"),
        ("item_ids.npy", np.array(["", "5"]), "titles have 3 rows, the catalogue has 2"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, file: str, content: np.ndarray | None, complaint: str) -> None:
    save_dataset(small(), tmp_path / "folder")
    if content is None:
        (tmp_path / "folder" / file).write_bytes(b"junk")
    else:
        np.save(tmp_path / "folder" / file, content)
    with pytest.raises(FedMoEError, match=rf"data set .*folder cannot be read \(.*{complaint}|{complaint}.*make it"):
        open_dataset(tmp_path / "folder", "data set", "make it again")


def test_a_hash_covers_every_entry_and_names_its_modality() -> None:
    dataset = small()
    values = np.array(dataset.features["sound"].values)
    values[2, 1] += 1e-6
    sound = ItemFeatures(values, dataset.features["sound"].present)
    changed = replace(dataset, features={**dataset.features, "sound": sound}).fingerprints()
    before = dataset.fingerprints()
    assert {name for name in before if before[name] != changed[name]} == {"sound-features"}
    assert "shape-features" not in replace(dataset, features={}).fingerprints()
