"""Tables of items: what their columns hold, the features that are made of them, and the cache of these."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import encode
from data.items import encoded
from data.items.plain import attributes, thumbnails, words
from data.items.table import read_items
from data.registry import load_dataset
from fedmoe.data_settings import DataSettings
from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings

IDS = ["", *(f"i{number}" for number in range(12))]
COLOURS = [(255, 0, 0), (0, 0, 255)]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder of 12 items, of which i0 has no picture and no row has all, and the clicks of 8 users on them."""
    (tmp_path / "pictures").mkdir()
    rows = ["item_id,name,kind,price,shop,photo"]
    for number in range(12):
        if number:
            Image.new("RGB", (20, 30), COLOURS[number % 2]).save(tmp_path / "pictures" / f"{number}.png")
        photo = f"pictures/{number}.png" if number else ""
        kind = "Red|Warm" if number % 2 == 0 else "Blue"
        rows.append(f'i{number},"thing no {number}, of word{number}",{kind},{number}.50,ours,{photo}')
    (tmp_path / "items.csv").write_text("\n".join([*rows, "i99,never met,Blue,1,ours,"]) + "\n")
    clicks = ["user_id,item_id,timestamp"]
    clicks += [f"u{user},i{(user + step) % 12},{1000000000 + step}" for user in range(8) for step in range(6)]
    (tmp_path / "clicks.csv").write_text("\n".join(clicks) + "\n")
    return tmp_path


def settings(shop: Path, modalities: dict[str, Any] | None = None, **data: Any) -> Settings:
    own = {"data_file": shop / "clicks.csv", "item_file": shop / "items.csv", "feature_dim": 0, **data}
    return Settings.model_validate({"data": own, "modalities": modalities or {}})


def test_columns_are_told_by_their_content(shop: Path) -> None:
    table = read_items(shop / "items.csv", IDS, DataSettings())
    assert table.columns == {
        "name": "text",
        "kind": "attributes",
        "price": "attributes",
        "shop": "ignore",
        "photo": "picture",
    }
    assert table.texts[:2] == ["", "thing no 0, of word0"]
    assert table.attributes[1] == ("kind=Red", "kind=Warm", "price=0.5 and more")
    assert table.attributes[2][0] == "kind=Blue" and table.attributes[0] == ()
    assert table.pictures[:3] == [None, None, shop / "pictures" / "1.png"]
    assert table.titles[2].startswith("thing no 1, of word1, Blue, ")
    assert table.reading.startswith("items.csv has 12 of the 12 items (name: text, kind: attributes")


def test_what_a_column_holds_can_be_said(shop: Path) -> None:
    columns = {"kind": "text", "photo": "ignore", "name": "attributes"}
    table = read_items(shop / "items.csv", IDS, DataSettings(item_file=Path("x"), item_columns=columns))
    assert table.texts[1] == "Red|Warm" and not any(table.pictures)
    assert "name=thing no 0" in table.attributes[1]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "tsv"])
def test_other_forms_of_the_table(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"items.{form}"
    if form == "jsonl":
        path.write_text('{"id": 1, "tags": ["a", "b"]}\n{"id": 2, "tags": ["b"]}\n{"id": 3, "tags": null}\n')
    elif form == "tsv":
        path.write_text("item_id:token\ttags:token_seq\n1\ta|b\n2\tb\n3\t\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table({"id": [1.0, 2.0, 3.0], "tags": [["a", "b"], ["b"], None]}), path)
    chosen = DataSettings(item_file=path, item_columns={"tags": "attributes"})
    assert read_items(path, ["", "1", "2", "3"], chosen).attributes == [(), ("tags=a", "tags=b"), ("tags=b",), ()]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("name,kind\na,b\n", "has no column 'item_id' or 'id'.*it has name, kind"),
        ("item_id,name\ni0,a\ni0,b\n", "item i0 is in row 1 and in row 2"),
        ("item_id,name\nx,a\ny,b\nz,c\n", "only 0 of its 3 items are among the 12"),
        ("item_id,a,a\ni0,b,c\n", "two columns are called 'a'"),
        ("item_id,a\ni0,b,c\n", "cannot be read"),
        ("item_id,photo\ni0,a.png\ni1,b.png\n", "2 of the 2 pictures of column 'photo' are not there, such as a.png"),
        ("item_id,one,two\ni0,a.png,b.png\ni1,b.png,a.png\n", "both hold pictures - set data.item_columns.two=ignore"),
    ],
)
def test_a_wrong_table_is_one_clear_line(tmp_path: Path, table: str, complaint: str) -> None:
    (tmp_path / "items.csv").write_text(table)
    with pytest.raises(FedMoEError, match=complaint):
        read_items(tmp_path / "items.csv", IDS, DataSettings())


def test_a_table_of_interactions_says_of_items_what_does_not_differ(tmp_path: Path) -> None:
    rows = [
        ("u1", "i0", 5, "Heat", "Crime|Drama"),
        ("u2", "i1", 3, "Alien", "Horror"),
        ("u2", "i0", 4, "Heat", "Crime|Drama"),
    ]
    lines = ["who,item_id,rating,title,kinds", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    settings = DataSettings(
        item_file=Path("x"), user_column="who", item_columns={"title": "text", "kinds": "attributes"}
    )
    found = read_items(tmp_path / "all.csv", ["", "i0", "i1"], settings)
    assert found.texts == ["", "Heat", "Alien"]
    assert found.attributes == [(), ("kinds=Crime", "kinds=Drama"), ("kinds=Horror",)]
    assert "columns that are not of the items: who, rating" in found.reading
    with pytest.raises(FedMoEError, match="item i0 is in row 1 and in row 3"):  # users are called otherwise
        read_items(tmp_path / "all.csv", ["", "i0", "i1"], DataSettings())


def test_an_unknown_column_is_named(shop: Path) -> None:
    with pytest.raises(FedMoEError, match=r"no column 'nam' - did you mean 'name'"):
        read_items(shop / "items.csv", IDS, DataSettings(item_file=Path("x"), item_columns={"nam": "text"}))


def test_words_by_hand() -> None:
    values = words(["red shoe", "red boot", ""])
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), [1, 1, 0], rtol=1e-6)
    red = (1 / np.sqrt(1 + (1 + np.log(2)) ** 2)) ** 2  # "red" is in both texts: idf 1; "shoe" in one: 1 + log 2
    assert values[0] @ values[1] == pytest.approx(red)


def test_attributes_and_thumbnails_by_hand(tmp_path: Path) -> None:
    common, rare = 1 + np.log(3 / 2), 1 + np.log(3)
    length = np.hypot(common, rare)
    expected = [[common / length, rare / length], [1, 0], [0, 0]]
    np.testing.assert_allclose(attributes([("a", "b"), ("a",), ()]), expected, rtol=1e-6)
    Image.new("RGB", (20, 30), (255, 0, 0)).save(tmp_path / "red.png")
    assert thumbnails([tmp_path / "red.png"]).reshape(64, 3).tolist() == [[1, -1, -1]] * 64


def test_each_modality_has_features_of_its_own(shop: Path, tmp_path: Path) -> None:
    dataset = load_dataset(settings(shop), tmp_path / "cache")
    assert list(dataset.features) == ["visual", "text", "attributes"]
    assert [int(each.present.sum()) for each in dataset.features.values()] == [11, 12, 12]
    blue, red = dataset.features["visual"].values[2], dataset.features["visual"].values[3]
    assert blue[2] > 0.9 > -0.9 > blue[0] and red[0] > 0.9
    assert dataset.name == "clicks" and dataset.titles is not None and dataset.titles[1].startswith("thing no 0")
    assert "visual by thumbnails of 11 items, 1 have none; text by words of 12 items, 0 have none" in dataset.reading


def test_a_modality_may_have_a_file_or_be_left_out(shop: Path, tmp_path: Path) -> None:
    np.save(shop / "v.npy", np.ones((12, 3), np.float32))
    (shop / "item_ids.txt").write_text("\n".join(IDS[1:]))
    chosen = {"visual": {"file": str(shop / "v.npy")}, "attributes": None}
    dataset = load_dataset(settings(shop, chosen), tmp_path / "cache")
    assert {name: each.dim for name, each in dataset.features.items()} == {"visual": 3, "text": 512}


def test_the_same_content_is_encoded_once(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, read = tmp_path / "cache", encode.open_picture
    seen: list[Path] = []
    monkeypatch.setattr(encode, "open_picture", lambda path: seen.append(path) or read(path))
    first = load_dataset(settings(shop), cache).features["visual"].values[2].copy()
    assert len(seen) == 11
    os.utime(shop / "items.csv", (0, 0))
    load_dataset(settings(shop), cache)
    assert len(seen) == 11
    Image.new("RGB", (20, 30), (0, 255, 0)).save(shop / "pictures" / "1.png")  # another picture under the same name
    changed = load_dataset(settings(shop), cache).features["visual"].values[2]
    assert len(seen) == 22 and first[2] > 0.9 and changed[2] < -0.9 and changed[1] > 0.9


def test_a_named_encoder_is_used_and_tells_its_progress(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoded, "_SECONDS", -1.0)
    monkeypatch.setattr(encoded, "BATCH", 8)
    monkeypatch.setattr(encode, "text_encoder", lambda name: lambda texts: np.array([[len(t), 1] for t in texts]))
    chosen = {"text": {"encoder": "some/encoder"}}
    dataset = load_dataset(settings(shop, chosen), tmp_path / "cache")
    assert dataset.features["text"].values[1].tolist() == [len("thing no 0, of word0"), 1]
    assert "text by some/encoder of 12 items" in dataset.reading
    assert "text: 8 of 12 items encoded by some/encoder\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"modalities": {"text": {"file": "a.npy", "encoder": "x"}}}, "encoder makes features, but file 'a.npy'"),
        ({"data": {"item_columns": {"a": "text"}}}, "item_columns are those of item_file"),
        ({"data": {"dataset": "synthetic", "item_file": "items.csv"}}, "does not read item_file"),
    ],
)
def test_a_setting_without_effect_is_an_error(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Settings.model_validate(changed)


def test_data_without_texts_has_nothing_to_encode(tmp_path: Path) -> None:
    data = {"dataset": "synthetic", "synthetic": {"users": 10, "items": 20}}
    chosen = Settings.model_validate({"data": data, "modalities": {"text": {"encoder": "x"}}})
    with pytest.raises(FedMoEError, match="encoder 'x': the data set has features of its own"):
        load_dataset(chosen, tmp_path)
