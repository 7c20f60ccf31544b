"""Features that need no model: words of texts, attributes, and small versions of pictures.

Each is made the same way on every machine. They say less than a pretrained model does, and need no download.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.titles import hashed_words, unit_rows, words_of

BUCKETS = 512  # of hashed words
MOST_ATTRIBUTES = 1000  # the commonest ones
THUMBNAIL = 8  # points, width and height


def words(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return ``[items, BUCKETS]``: each text's words, hashed with a sign, by inverse document frequency, norm 1.

    With ``data.feature_dim`` principal components of them this is latent semantic analysis (Deerwester et al. 1990).
    """
    found = [words_of(text) for text in texts]
    return unit_rows(hashed_words(found, BUCKETS, sum(map(bool, found))))


def attributes(own: Sequence[Sequence[str]]) -> NDArray[np.float32]:
    """Return ``[items, attributes]``: 1 where an item has the attribute, by inverse frequency, norm 1."""
    frequency = Counter(name for each in own for name in each)
    kept = sorted(name for name, _ in sorted(frequency.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_ATTRIBUTES])
    column = {name: place for place, name in enumerate(kept)}
    values = np.zeros((len(own), max(len(kept), 1)), np.float32)
    for row, each in enumerate(own):
        for name in each:
            if name in column:
                values[row, column[name]] = 1.0 + np.log(len(own) / frequency[name])
    return unit_rows(values)


def thumbnails(paths: Sequence[Path]) -> NDArray[np.float32]:
    """Return ``[pictures, 192]``: each picture shrunk to 8 by 8 points, red, green and blue from -1 to 1.

    They tell colours and their places, not what a picture shows.
    """
    from PIL import Image

    from data.encode import open_picture

    small = [open_picture(path).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX) for path in paths]
    return np.stack([(np.asarray(each, np.float32) - 127.5) / 127.5 for each in small]).reshape(len(paths), -1)


PLAIN: dict[str, Callable[..., NDArray[np.float32]]] = {
    "words": words,
    "attributes": attributes,
    "thumbnails": thumbnails,
}
