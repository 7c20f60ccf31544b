"""``load_dataset``: every data set, where features come from, the cache."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data import registry
from data.registry import default_cache, load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data")


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Return a folder with a tiny ML-1M and its features."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "sequences.txt").write_text("5 10 20 30 10\n6 30 10 20 30\n7 10 20 30\n")
    (folder / "movies.dat").write_text("10::Heat (1995)::Crime\n30::Alien (1979)::Horror|Sci-Fi\n99::X (2000)::Drama\n")
    np.save(folder / "visual.npy", np.array([[1, 2], [0, 0], [3, 4]], np.float16))
    (folder / "item_ids.txt").write_text("10\n20\n30\n")
    return folder


def tiny(folder: Path, seed: int = 0, files: dict[str, str | None] | None = None, **changes: object) -> Settings:
    """Return settings for the films; files: feature files by modality."""
    modalities = {name: {"file": file} for name, file in (files or {}).items()}
    data = {"dataset": "ml-1m", "data_dir": folder, "min_items": 4, **changes}
    return Settings.model_validate({"seed": seed, "data": data, "modalities": modalities})


def small(seed: int = 0, **data: object) -> Settings:
    """Return settings of a small synthetic data set."""
    data = {"dataset": "synthetic", "synthetic": {"users": 10, "items": 20}, **data}
    return Settings.model_validate({"seed": seed, "data": data})


def test_films_with_titles_and_features(films: Path, tmp_path: Path) -> None:
    dataset = load_dataset(tiny(films, files={"visual": "visual.npy"}), tmp_path / "cache")
    assert dataset.name == "ml-1m" and dataset.dropped_users == 1
    assert dataset.interactions.item_ids.tolist() == ["", "10", "20", "30"]
    assert dataset.titles == ["", "Heat (1995), Crime", "", "Alien (1979), Horror, Sci-Fi"]
    assert dataset.features["text"].present.tolist() == [False, True, False, True]
    assert dataset.features["visual"].values.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    assert dataset.features["visual"].present.tolist() == [False, True, False, True]


def test_text_features_from_a_file_or_none(films: Path, tmp_path: Path) -> None:
    dataset = load_dataset(tiny(films, files={"text": str(films / "visual.npy")}), tmp_path)
    assert dataset.features["text"].dim == 2 and list(dataset.features) == ["text"]
    assert not load_dataset(tiny(films, files={"text": None}), tmp_path).features


def test_an_id_file_is_found_in_the_data_dir(films: Path, tmp_path: Path) -> None:
    (films / "ids.txt").write_text("30\n20\n10\n")
    settings = tiny(films, files={"visual": "visual.npy"}, item_id_file="ids.txt")
    visual = load_dataset(settings, tmp_path).features.get("visual")
    assert visual is not None and visual.values.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2]]


def test_own_histories(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("who,what\nb,2\nb,1\nb,2\na,1\na,1\na,3\nb,3\na,1\n")
    data = {"data_dir": tmp_path, "data_file": "mine.csv", "user_column": "who", "item_column": "what"}
    settings = Settings.model_validate({"data": {**data, "time_column": None, "min_items": 4}})
    dataset = load_dataset(settings, tmp_path / "cache")
    assert dataset.name == "mine" and dataset.titles is None and not dataset.features
    assert dataset.interactions.history(1).tolist() == [2, 1, 2, 3]


def test_synthetic_has_its_own_features(tmp_path: Path) -> None:
    settings = small(synthetic={"users": 30, "items": 20}, min_items=20)
    dataset = load_dataset(settings, tmp_path)
    assert dataset.dropped_users > 0
    assert dataset.interactions.num_users == 30 - dataset.dropped_users and dataset.interactions.num_items == 20
    assert list(dataset.features) == ["visual", "text"] and dataset.titles is None
    np.save(tmp_path / "v.npy", np.ones((20, 3), np.float32))
    changed = {"visual": {"file": str(tmp_path / "v.npy")}, "text": None, "audio": {"file": "noise"}}
    other = load_dataset(Settings.model_validate({"data": settings.data, "modalities": changed}), tmp_path)
    assert {name: features.dim for name, features in other.features.items()} == {"visual": 3, "audio": 64}


def test_noise_takes_the_place_of_features(films: Path, tmp_path: Path) -> None:
    settings = tiny(films, files={"text": "noise", "visual": "noise"}, feature_dim=8)
    first, again, other = (
        load_dataset(settings.model_copy(update={"seed": seed}), tmp_path / "cache") for seed in (1, 1, 2)
    )
    text, visual = first.features["text"], first.features["visual"]
    assert text.values.shape == visual.values.shape == (4, 8)
    assert text.present.tolist() == [False, True, True, True]
    assert np.array_equal(text.values, again.features["text"].values)
    assert not np.array_equal(text.values, other.features["text"].values)
    assert not np.array_equal(text.values, visual.values)


def test_the_seed_matters_for_synthetic_data_alone(films: Path, tmp_path: Path) -> None:
    first, second = (load_dataset(small(seed), tmp_path / "a").interactions.items for seed in (1, 2))
    assert not np.array_equal(first[:40], second[:40])
    for seed in (1, 2):
        load_dataset(tiny(films, seed), tmp_path / "b")
    assert len(list((tmp_path / "b" / "parsed").iterdir())) == 1


# The cache


def test_new_items_are_withheld_from_what_the_cache_holds(tmp_path: Path) -> None:
    whole = load_dataset(Settings.model_validate({"data": {"dataset": "synthetic"}}), tmp_path)
    settings = Settings.model_validate({"data": {"dataset": "synthetic", "new_items": 0.1}})
    dataset = load_dataset(settings, tmp_path)
    assert len(list((tmp_path / "parsed").iterdir())) == 1
    assert whole.new is None and len(whole.negatives.withheld) == 0
    assert dataset.new is not None and len(dataset.new.items) == 30
    assert not np.isin(dataset.interactions.items, dataset.new.items).any()
    assert dataset.negatives.withheld.tolist() == dataset.new.items.tolist()
    assert dataset.reading == f"30 of 300 items withheld from training; {len(dataset.new.users)} users have met one"
    assert dataset.fingerprints() == whole.fingerprints() and dataset.all_fingerprints() != whole.all_fingerprints()


def test_the_second_load_opens_the_first_ones_arrays(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(films, files={"visual": "visual.npy"})
    first = load_dataset(settings, tmp_path / "cache")
    monkeypatch.setattr(registry, "_histories", None)  # would raise if it were called
    second = load_dataset(settings, tmp_path / "cache")
    assert isinstance(second.interactions.items, np.memmap)
    assert isinstance(second.features["visual"].values, np.memmap)
    assert first.titles == second.titles and first.dropped_users == second.dropped_users
    np.testing.assert_array_equal(first.interactions.items, second.interactions.items)


def test_a_changed_source_or_setting_is_parsed_again(films: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert load_dataset(tiny(films), cache).interactions.num_users == 2
    assert load_dataset(tiny(films, min_items=4), cache).interactions.num_users == 2
    (films / "sequences.txt").write_text("5 10 20 30 10\n6 30 10 20 30\n7 10 20 30 10\n")
    assert load_dataset(tiny(films), cache).interactions.num_users == 3
    os.utime(films / "item_ids.txt", (0, 0))  # is no source as long as no feature file is
    load_dataset(tiny(films), cache)
    assert len(list((cache / "parsed").iterdir())) == 2


def test_a_damaged_cache_says_so(films: Path, tmp_path: Path) -> None:
    load_dataset(tiny(films), tmp_path)
    (folder,) = (tmp_path / "parsed").iterdir()
    (folder / "about.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(FedMoEError, match=rf"cached data set .*{folder.name} cannot be read .* - delete the folder"):
        load_dataset(tiny(films), tmp_path)
    (folder / "items.npy").write_bytes(b"")
    with pytest.raises(FedMoEError, match=rf"cached data set .*{folder.name} cannot be read .* - delete the folder"):
        load_dataset(tiny(films), tmp_path)


def test_processes_that_start_at_once(films: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        results = [pool.submit(load_dataset, tiny(films), tmp_path / "cache") for _ in range(6)]
        assert {result.result().interactions.num_users for result in results} == {2}
    assert len(list((tmp_path / "cache" / "parsed").iterdir())) == 1  # and no temporary folder is left


def test_a_process_that_finds_the_cache_filled_imports_little() -> None:
    code = "import sys, data.registry; sys.exit(bool({'pyarrow', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "a"))
    assert default_cache() == tmp_path / "a"
    load_dataset(small())
    assert (tmp_path / "a" / "parsed").is_dir()
    monkeypatch.delenv("FEDMOE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_cache() == tmp_path / "b" / "fedmoe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert default_cache() == tmp_path / "c" / ".cache" / "fedmoe"


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    for name in ("FEDMOE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(FedMoEError, match=str(tmp_path / "home")):
        load_dataset(small())


def test_errors_name_what_to_correct(films: Path, tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"data.data_dir: .*nowhere is no folder"):
        load_dataset(tiny(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(FedMoEError, match=r"typo.npy: cannot be read \(No such file.*visual file"):
        load_dataset(tiny(films, files={"visual": "typo.npy"}), tmp_path)
    with pytest.raises(FedMoEError, match="modalities.audio: the data set has no features of that name - set its file"):
        load_dataset(tiny(films, files={"audio": None}), tmp_path / "cache")
    with pytest.raises(FedMoEError, match="no user has 9 items"):
        load_dataset(tiny(films, min_items=9), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # nothing half-written
    (tmp_path / "file").write_text("")
    with pytest.raises(FedMoEError, match=r"cannot be written \(.*\) - make room there or choose another folder"):
        load_dataset(tiny(films), tmp_path / "file")


# The real data


@needs_real_data
def test_the_real_ml_100k(tmp_path: Path) -> None:
    files = {"visual": str(SHARED / "ml-100k" / "visual_effnet_1280.npy")}
    settings = tiny(SHARED, files=files, dataset="ml-100k", min_items=5)
    dataset = load_dataset(settings, tmp_path)
    interactions = dataset.interactions
    assert (interactions.num_users, interactions.num_items, len(interactions.items)) == (943, 1682, 100_000)
    assert dataset.titles is not None and dataset.titles[1] == "Toy Story (1995), Animation, Children's, Comedy"
    assert int(dataset.features["text"].present.sum()) == 1682
    assert int(dataset.features["visual"].present.sum()) == 1665


@needs_real_data
def test_the_real_ml_1m(tmp_path: Path) -> None:
    folder = SHARED / "ml-1m"
    settings = tiny(folder, files={"text": "text_minilm_384.npy"}, min_items=5)
    dataset = load_dataset(settings, tmp_path)
    interactions = dataset.interactions
    assert (interactions.num_users, interactions.num_items, len(interactions.items)) == (6040, 3416, 999_611)
    assert interactions.item_ids[1:].tolist() == (folder / "item_ids.txt").read_text().split()
    assert dataset.titles is not None and all(dataset.titles[1:])
    assert dataset.features["text"].present[1:].all()
