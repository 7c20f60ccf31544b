"""A modality's features made of texts, attributes or pictures; kept in the cache by the content that was encoded."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.features import ItemFeatures
from fedmoe.data_settings import DataSettings
from fedmoe.errors import FedMoEError
from fedmoe.files import write_file

ENCODERS: Mapping[str, str] = {"text": "words", "attributes": "attributes", "picture": "thumbnails"}
"""The encoders that need no download, by what they encode."""
BATCH = 64
_SECONDS = 5.0  # between two lines of progress


def encoded(what: str, inputs: Sequence[Any], encoder: str | None, cache: Path) -> ItemFeatures:
    """Return features of inputs ``[num_items + 1]``; those of empty ones, and of the padding, are missing.

    Args:
        what: a key of ENCODERS.
        inputs: texts, tuples of attributes, or paths of pictures.
        encoder: None: the one of ENCODERS; for texts also a sentence encoder of ``transformers``, for pictures
            ``efficientnet-lite0`` or a CLIP, by name or folder.
        cache: where features are kept; the same content is encoded once.

    Raises FedMoEError if a model cannot be loaded, a picture cannot be read, or nothing is there to encode.
    """
    rows = [row for row, value in enumerate(inputs) if row and value]
    if not rows:
        raise FedMoEError(f"no item has anything to encode as {what} - check data.item_file")
    known, name = [inputs[row] for row in rows], encoder or ENCODERS[what]
    path = cache / "encoded" / f"{what}-{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{_digest(name, known)}.npy"
    if not path.is_file():
        buffer = io.BytesIO()
        np.save(buffer, _encode(what, name, known))
        write_file(path, buffer.getvalue())
    found = np.load(path)
    values = np.zeros((len(inputs), found.shape[1]), np.float32)
    values[rows] = found
    return ItemFeatures(values, (values != 0).any(axis=1))


def _encode(what: str, name: str, known: list[Any]) -> NDArray[Any]:
    from data import encode
    from data.items.plain import PLAIN

    if name == ENCODERS[what] and what != "picture":
        return PLAIN[name](known)
    if what == "attributes":
        raise FedMoEError(f"modalities.attributes.encoder: '{name}' cannot encode attributes - leave it out")
    started = told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > _SECONDS or told > started and done == len(known):
            told = time.monotonic()
            print(f"{what}: {done} of {len(known)} items encoded by {name}", file=sys.stderr, flush=True)

    if name == ENCODERS[what]:
        return encode.encode(known, PLAIN[name], BATCH, progress)
    if what == "text":
        return encode.encode(known, encode.text_encoder(name), BATCH, progress)
    return encode.encode(known, encode.picture_encoder(name), BATCH, progress)


def _digest(name: str, known: Sequence[Any]) -> str:
    digest = sha256(name.encode())
    for value in known:
        content = value.read_bytes() if isinstance(value, Path) else repr(value).encode()
        digest.update(sha256(content).digest())
    return digest.hexdigest()[:16]


def picture_stamp(table: Path, settings: DataSettings, cache: Path) -> str:
    """Return a hash of sizes and times of the pictures that a table of items names; it tells whether any changed.

    The names are kept in the cache: to read the table takes longer than to look at its pictures.
    """
    status = table.stat()
    key = repr((str(table.resolve()), status.st_size, status.st_mtime_ns, sorted(settings.item_columns.items())))
    kept = cache / "encoded" / f"pictures-{sha256(key.encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        from data.items.table import picture_paths  # pyarrow, which a filled cache makes unnecessary

        write_file(
            kept, json.dumps([[str(path) for path in paths] for paths in picture_paths(table, settings)]).encode()
        )
    stamps = []
    for paths in json.loads(kept.read_text(encoding="utf-8")):
        there = next((path for path in map(Path, paths) if path.is_file()), None)
        stamps.append(None if there is None else (there.stat().st_size, there.stat().st_mtime_ns))
    return sha256(repr(stamps).encode()).hexdigest()[:16]
