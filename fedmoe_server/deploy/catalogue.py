"""``python -m fedmoe_server catalogue CONFIG --out FOLDER``: what clients need to know of the items, and no history.

The items are those of the settings' data set or, with ``--items FILE``, those of a list. The folder is handed to the
clients once, by whatever way files are handed out, and again when the catalogue changes; the server itself needs no
more than that (``dataset=catalogue data_dir=FOLDER``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.dataset import save_catalogue
from data.registry import catalogue_from_list, load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings


def main(words: Sequence[str]) -> int:
    """Write the catalogue of the settings' data set; return the exit status: 0 done, 2 something to put right."""
    parser = argparse.ArgumentParser("python -m fedmoe_server catalogue", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write, which must not exist yet")
    parser.add_argument("--items", type=Path, help="list of items, 'id<tab>title' a line, instead of a data set")
    given, settings_words = parser.parse_known_args(list(words))
    try:
        settings, warnings = load_settings(settings_words)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        dataset = load_dataset(settings) if given.items is None else catalogue_from_list(given.items, settings)
        save_catalogue(dataset, given.out)
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    marks = ", ".join(f"{name} {mark}" for name, mark in dataset.fingerprints().items())
    print(f"{given.out}: {dataset.interactions.num_items} items; {marks}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
