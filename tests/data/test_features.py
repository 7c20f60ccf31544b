"""Feature files: formats, matching of rows to items, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from data.features import ItemFeatures, load_features, principal_components
from fedmoe.errors import FedMoEError

ITEM_IDS = np.array(["", "2", "3", "5"])
TABLE = np.arange(1, 11, dtype=np.float32).reshape(5, 2)  # row k is [2k + 1, 2k + 2]


def write(path: Path, table: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(table), path)
    else:
        safetensors.numpy.save_file({"features": table}, path)
    return path


@pytest.mark.parametrize("ending", [".npy", ".pt", ".safetensors"])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_every_format_and_type(tmp_path: Path, ending: str, kind: type) -> None:
    features = load_features(write(tmp_path / f"f{ending}", TABLE.astype(kind)), ITEM_IDS)
    assert features.values.dtype == np.float32 and features.dim == 2
    assert features.values.tolist() == [[0, 0], [3, 4], [5, 6], [9, 10]]  # row = id - 1
    assert features.present.tolist() == [False, True, True, True]


def test_one_row_more_than_the_largest_id_means_row_equals_id(tmp_path: Path) -> None:
    table = np.concatenate([np.zeros((1, 2), np.float32), TABLE])
    features = load_features(write(tmp_path / "f.npy", table), ITEM_IDS)
    assert features.values.tolist() == [[0, 0], [3, 4], [5, 6], [9, 10]]


def test_a_first_row_that_may_be_an_items_is_not_guessed_about(tmp_path: Path) -> None:
    ids = np.array(["", "2", "3", "4"])  # as above, and the item of the last row is not in the catalogue
    with pytest.raises(FedMoEError, match="the first is not empty: it is unclear whether row k is of item k or k"):
        load_features(write(tmp_path / "f.npy", TABLE), ids)


def test_an_id_of_zero_needs_a_row_of_its_own(tmp_path: Path) -> None:
    ids = np.array(["", "0", "4"])
    assert load_features(write(tmp_path / "f.npy", TABLE), ids).values.tolist() == [[0, 0], [1, 2], [9, 10]]
    with pytest.raises(FedMoEError, match="has 4 rows but the catalogue has 2 items with ids 0 to 4"):
        load_features(write(tmp_path / "g.npy", TABLE[:4]), ids)


def test_rows_by_an_id_file(tmp_path: Path) -> None:
    (tmp_path / "item_ids.txt").write_text("5\n77\n2\n")  # found beside; 77 is no item, 3 has no row
    path = write(tmp_path / "f.npy", TABLE[:3])
    features = load_features(path, ITEM_IDS)
    assert features.values.tolist() == [[0, 0], [5, 6], [0, 0], [1, 2]]
    assert features.present.tolist() == [False, True, False, True]
    (tmp_path / "other.txt").write_text("3\nx\n5")
    features = load_features(path, ITEM_IDS, tmp_path / "other.txt")
    assert features.values.tolist() == [[0, 0], [0, 0], [1, 2], [5, 6]]


def test_rows_of_zeros_are_missing(tmp_path: Path) -> None:
    table = TABLE.copy()
    table[2] = 0.0
    assert load_features(write(tmp_path / "f.npy", table), ITEM_IDS).present.tolist() == [False, True, False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_value_that_is_not_finite_names_the_item(tmp_path: Path, value: float) -> None:
    table = TABLE.astype(np.float64)
    table[2, 1] = value
    with pytest.raises(FedMoEError, match=r"f.npy: row 2 \(item 3\) is not finite"):
        load_features(write(tmp_path / "f.npy", table), ITEM_IDS)


def test_counts_that_do_not_match_show_both(tmp_path: Path) -> None:
    path = write(tmp_path / "f.npy", TABLE[:3])
    with pytest.raises(FedMoEError, match=r"3 rows but the catalogue has 3 items with ids 2 to 5.*item_ids.txt"):
        load_features(path, ITEM_IDS)
    (tmp_path / "item_ids.txt").write_text("2\n3\n")
    with pytest.raises(FedMoEError, match=r"f.npy has 3 rows but .*item_ids.txt has 2 lines"):
        load_features(path, ITEM_IDS)


def test_bad_id_files(tmp_path: Path) -> None:
    path = write(tmp_path / "f.npy", TABLE[:3])
    ids = tmp_path / "ids.txt"
    with pytest.raises(FedMoEError, match=r"ids.txt: cannot be read.*item_id_file"):
        load_features(path, ITEM_IDS, ids)
    ids.write_text("2\n3\n2\n")
    with pytest.raises(FedMoEError, match="item 2 is on line 1 and line 3"):
        load_features(path, ITEM_IDS, ids)
    ids.write_text("a\nb\nc\n")
    with pytest.raises(FedMoEError, match="only 0 of its 3 ids are among the catalogue's"):
        load_features(path, ITEM_IDS, ids)


@pytest.mark.parametrize(("matching", "accepted"), [(1, False), (9, False), (10, True), (20, True)])
def test_a_feature_file_must_match_half_of_what_it_could(tmp_path: Path, matching: int, accepted: bool) -> None:
    catalogue = np.array(["", *(f"item{number}" for number in range(100))])
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(f"item{row}" if row < matching else f"other{row}" for row in range(20)))
    path = write(tmp_path / "f.npy", np.ones((20, 2), np.float32))
    if accepted:
        assert load_features(path, catalogue, ids).present.sum() == matching
    else:
        with pytest.raises(FedMoEError, match=rf"only {matching} of its 20 ids"):
            load_features(path, catalogue, ids)


def test_string_ids_need_an_id_file(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"ids are not integers.*line k holds the item id of row k"):
        load_features(write(tmp_path / "f.npy", TABLE), np.array(["", "a", "b"]))


@pytest.mark.parametrize("ending", [".npy", ".pt", ".safetensors"])
def test_damaged_files(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"f{ending}", np.ones((200, 50), np.float32))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FedMoEError, match=rf"f\{ending}: cannot be read \(.+\) - the file is damaged"):
        load_features(path, ITEM_IDS)
    path.write_bytes(b"")
    with pytest.raises(FedMoEError, match="cannot be read"):
        load_features(path, ITEM_IDS)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    torch.save({"f": Path("x")}, tmp_path / "f.pt")
    with pytest.raises(FedMoEError, match=r"f.pt: cannot be read"):
        load_features(tmp_path / "f.pt", ITEM_IDS)
    np.save(tmp_path / "f.npy", np.array([{}], dtype=object))
    with pytest.raises(FedMoEError, match=r"f.npy: cannot be read"):
        load_features(tmp_path / "f.npy", ITEM_IDS)


def test_what_is_not_one_float_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"features are int64 - save them as float16"):
        load_features(write(tmp_path / "i.npy", np.ones((5, 2), np.int64)), ITEM_IDS)
    with pytest.raises(FedMoEError, match=r"have shape \[5\] - it must be \[items, width\]"):
        load_features(write(tmp_path / "d.npy", np.ones(5, np.float32)), ITEM_IDS)
    torch.save({"a": torch.ones(5, 2)}, tmp_path / "d.pt")
    with pytest.raises(FedMoEError, match="holds a dict - save one tensor"):
        load_features(tmp_path / "d.pt", ITEM_IDS)
    torch.save(torch.ones(5, 2, dtype=torch.bfloat16), tmp_path / "b.pt")
    with pytest.raises(FedMoEError, match="features are bfloat16"):
        load_features(tmp_path / "b.pt", ITEM_IDS)
    safetensors.numpy.save_file({"a": TABLE, "b": TABLE}, tmp_path / "two.safetensors")
    with pytest.raises(FedMoEError, match="holds 2 tensors - save one tensor"):
        load_features(tmp_path / "two.safetensors", ITEM_IDS)
    with pytest.raises(FedMoEError, match=r"f.csv: features are read from .npy, .pt, .safetensors"):
        load_features(tmp_path / "f.csv", ITEM_IDS)
    with pytest.raises(FedMoEError, match=r"none.npy: no such feature file"):
        load_features(tmp_path / "none.npy", ITEM_IDS)


def test_features_check_themselves() -> None:
    with pytest.raises(ValueError, match="do not match"):
        ItemFeatures(np.zeros((3, 2), np.float32), np.zeros(2, np.bool_))
    with pytest.raises(ValueError, match="row 0 is the padding"):
        ItemFeatures(np.zeros((2, 2), np.float32), np.ones(2, np.bool_))


def drawn(width: int = 6, items: int = 20) -> ItemFeatures:
    values = np.random.default_rng(1).normal(size=(items + 1, width)).astype(np.float32)
    present = np.arange(items + 1) % 4 != 0
    return ItemFeatures(values * present[:, None], present)


def test_narrow_features_and_dim_0_are_left_alone() -> None:
    given = drawn()
    assert principal_components(given, 6) is given
    assert principal_components(given, 0) is given


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    given = drawn()
    found = principal_components(given, 3)
    rows = given.values[given.present].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    left, sizes, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.values[given.present]), np.abs(left * sizes)[:, :3], atol=1e-6)
    assert (found.values[~given.present] == 0).all()
    assert found.present is given.present


def test_signs_do_not_depend_on_the_order_of_the_items() -> None:
    given = drawn()
    order = np.concatenate([[0], 1 + np.random.default_rng(2).permutation(20)])
    shuffled = principal_components(ItemFeatures(given.values[order], given.present[order]), 3)
    np.testing.assert_allclose(shuffled.values, principal_components(given, 3).values[order], atol=1e-6)
