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
from fedmoe.settings import DataSettings, SyntheticSettings

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


def tiny(folder: Path, **changes: object) -> DataSettings:
    return DataSettings(**{"dataset": "ml-1m", "data_dir": folder, "min_items": 4, **changes})


def test_films_with_titles_and_features(films: Path, tmp_path: Path) -> None:
    dataset = load_dataset(tiny(films, visual_file="visual.npy"), 0, tmp_path / "cache")
    assert dataset.name == "ml-1m" and dataset.dropped_users == 1
    assert dataset.interactions.item_ids.tolist() == ["", "10", "20", "30"]
    assert dataset.titles == ["", "Heat (1995), Crime", "", "Alien (1979), Horror, Sci-Fi"]
    assert dataset.text is not None and dataset.text.present.tolist() == [False, True, False, True]
    assert dataset.visual is not None and dataset.visual.values.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]
    assert dataset.visual.present.tolist() == [False, True, False, True]


def test_text_features_from_a_file_or_none(films: Path, tmp_path: Path) -> None:
    dataset = load_dataset(tiny(films, text_file=str(films / "visual.npy")), 0, tmp_path)
    assert dataset.text is not None and dataset.text.dim == 2 and dataset.visual is None
    assert load_dataset(tiny(films, text_file=None), 0, tmp_path).text is None


def test_an_id_file_is_found_in_the_data_dir(films: Path, tmp_path: Path) -> None:
    (films / "ids.txt").write_text("30\n20\n10\n")
    settings = tiny(films, visual_file="visual.npy", item_id_file="ids.txt")
    visual = load_dataset(settings, 0, tmp_path).visual
    assert visual is not None and visual.values.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2]]


def test_own_histories(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("who,what\nb,2\nb,1\nb,2\na,1\na,1\na,3\nb,3\na,1\n")
    settings = DataSettings(
        dataset="file",
        data_dir=tmp_path,
        data_file=Path("mine.csv"),
        user_column="who",
        item_column="what",
        time_column=None,
        min_items=4,
    )
    dataset = load_dataset(settings, 0, tmp_path / "cache")
    assert dataset.name == "mine" and dataset.titles is None and dataset.text is None and dataset.visual is None
    assert dataset.interactions.history(1).tolist() == [2, 1, 2, 3]


def test_synthetic_has_its_own_features(tmp_path: Path) -> None:
    settings = DataSettings(dataset="synthetic", synthetic=SyntheticSettings(users=30, items=20), min_items=20)
    dataset = load_dataset(settings, 0, tmp_path)
    assert dataset.dropped_users > 0
    assert dataset.interactions.num_users == 30 - dataset.dropped_users and dataset.interactions.num_items == 20
    assert dataset.text is not None and dataset.visual is not None and dataset.titles is None
    assert load_dataset(settings.model_copy(update={"text_file": None}), 0, tmp_path).text is None
    np.save(tmp_path / "v.npy", np.ones((20, 3), np.float32))
    other = load_dataset(settings.model_copy(update={"visual_file": str(tmp_path / "v.npy")}), 0, tmp_path)
    assert other.visual is not None and other.visual.dim == 3


def test_noise_takes_the_place_of_features(films: Path, tmp_path: Path) -> None:
    settings = tiny(films, text_file="noise", visual_file="noise", feature_dim=8)
    first, again, other = (load_dataset(settings, seed, tmp_path / "cache") for seed in (1, 1, 2))
    assert first.text is not None
    assert first.visual is not None
    assert other.text is not None
    assert first.text.values.shape == first.visual.values.shape == (4, 8)
    assert first.text.present.tolist() == [False, True, True, True]
    assert np.array_equal(first.text.values, again.text.values)
    assert not np.array_equal(first.text.values, other.text.values)
    assert not np.array_equal(first.text.values, first.visual.values)


def test_the_seed_matters_for_synthetic_data_alone(films: Path, tmp_path: Path) -> None:
    small = DataSettings(dataset="synthetic", synthetic=SyntheticSettings(users=10, items=20))
    first, second = (load_dataset(small, seed, tmp_path / "a").interactions.items for seed in (1, 2))
    assert not np.array_equal(first[:40], second[:40])
    for seed in (1, 2):
        load_dataset(tiny(films), seed, tmp_path / "b")
    assert len(list((tmp_path / "b" / "parsed").iterdir())) == 1


# The cache


def test_the_second_load_opens_the_first_ones_arrays(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny(films, visual_file="visual.npy")
    first = load_dataset(settings, 0, tmp_path / "cache")
    monkeypatch.setattr(registry, "_build", None)  # would raise if it were called
    second = load_dataset(settings, 0, tmp_path / "cache")
    assert isinstance(second.interactions.items, np.memmap)
    assert second.visual is not None and isinstance(second.visual.values, np.memmap)
    assert first.titles == second.titles and first.dropped_users == second.dropped_users
    np.testing.assert_array_equal(first.interactions.items, second.interactions.items)


def test_a_changed_source_or_setting_is_parsed_again(films: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert load_dataset(tiny(films), 0, cache).interactions.num_users == 2
    assert load_dataset(tiny(films, min_items=4), 0, cache).interactions.num_users == 2
    (films / "sequences.txt").write_text("5 10 20 30 10\n6 30 10 20 30\n7 10 20 30 10\n")
    assert load_dataset(tiny(films), 0, cache).interactions.num_users == 3
    os.utime(films / "item_ids.txt", (0, 0))  # is no source as long as no feature file is
    load_dataset(tiny(films), 0, cache)
    assert len(list((cache / "parsed").iterdir())) == 2


def test_a_damaged_cache_says_so(films: Path, tmp_path: Path) -> None:
    load_dataset(tiny(films), 0, tmp_path)
    (folder,) = (tmp_path / "parsed").iterdir()
    (folder / "about.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(FedMoEError, match=rf"{folder.name}: the cached data set is damaged .* - delete the folder"):
        load_dataset(tiny(films), 0, tmp_path)
    (folder / "interactions" / "items.npy").write_bytes(b"")
    with pytest.raises(FedMoEError, match=rf"{folder.name}: the cached data set is damaged .* - delete the folder"):
        load_dataset(tiny(films), 0, tmp_path)


def test_processes_that_start_at_once(films: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        results = [pool.submit(load_dataset, tiny(films), 0, tmp_path / "cache") for _ in range(6)]
        assert {result.result().interactions.num_users for result in results} == {2}
    assert len(list((tmp_path / "cache" / "parsed").iterdir())) == 1  # and no temporary folder is left


def test_a_process_that_finds_the_cache_filled_imports_little() -> None:
    code = "import sys, data.registry; sys.exit(bool({'pyarrow', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "a"))
    assert default_cache() == tmp_path / "a"
    settings = DataSettings(dataset="synthetic", synthetic=SyntheticSettings(users=5, items=10))
    load_dataset(settings, 0)
    assert (tmp_path / "a" / "parsed").is_dir()
    monkeypatch.delenv("FEDMOE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_cache() == tmp_path / "b" / "fedmoe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert default_cache() == tmp_path / "c" / ".cache" / "fedmoe"


def test_errors_name_what_to_correct(films: Path, tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"data.data_dir: .*nowhere is no folder"):
        load_dataset(tiny(tmp_path / "nowhere"), 0, tmp_path)
    with pytest.raises(FedMoEError, match=r"typo.npy: cannot be read \(No such file.*visual file"):
        load_dataset(tiny(films, visual_file="typo.npy"), 0, tmp_path)
    with pytest.raises(FedMoEError, match="no user has 9 items"):
        load_dataset(tiny(films, min_items=9), 0, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # nothing half-written
    (tmp_path / "file").write_text("")
    with pytest.raises(FedMoEError, match=r"cannot be written \(.*\) - make room there or choose another folder"):
        load_dataset(tiny(films), 0, tmp_path / "file")


# The real data


@needs_real_data
def test_the_real_ml_100k(tmp_path: Path) -> None:
    settings = DataSettings(data_dir=SHARED, visual_file=str(SHARED / "ml-100k" / "visual_effnet_1280.npy"))
    dataset = load_dataset(settings, 0, tmp_path)
    interactions = dataset.interactions
    assert (interactions.num_users, interactions.num_items, len(interactions.items)) == (943, 1682, 100_000)
    assert dataset.titles is not None and dataset.titles[1] == "Toy Story (1995), Animation, Children's, Comedy"
    assert dataset.text is not None and int(dataset.text.present.sum()) == 1682
    assert dataset.visual is not None and int(dataset.visual.present.sum()) == 1665


@needs_real_data
def test_the_real_ml_1m(tmp_path: Path) -> None:
    folder = SHARED / "ml-1m"
    settings = DataSettings(dataset="ml-1m", data_dir=folder, text_file="text_minilm_384.npy")
    dataset = load_dataset(settings, 0, tmp_path)
    interactions = dataset.interactions
    assert (interactions.num_users, interactions.num_items, len(interactions.items)) == (6040, 3416, 999_611)
    assert interactions.item_ids[1:].tolist() == (folder / "item_ids.txt").read_text().split()
    assert dataset.titles is not None and all(dataset.titles[1:])
    assert dataset.text is not None and dataset.text.present[1:].all()
