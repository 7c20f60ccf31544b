"""``python -m benchmarks.deployment.wire [CONFIG] [key=value ...]``: bytes a client and round, plain and masked.

In plain a client sends the rows of the item table that it touched, so that is a mean over users; a masked vector is the
whole table for everybody, or the rows that any client of the round touched, after these were counted. What the server
sends, the model, is the same. The messages of the other phases come on top: docs/secure-aggregation.md has their sizes.

Seconds of a client are the median of training and answering for 20 users, and with masks those of its part in a sum.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from statistics import median
from typing import Any

import numpy as np

from benchmarks.deployment.masking import seconds_of_a_sum
from benchmarks.runs import exit_status, job, sent_by
from data.registry import load_dataset
from data.sampling import generator
from fedmoe.loading import to_run_config
from fedmoe.secure.primitives import word_type
from fedmoe.settings import Settings
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import entries
from fedmoe.wire import ROWS, NamedArrays, pack
from fedmoe_client.learning.client import workbench
from fedmoe_client.learning.own_client import TABLE
from fedmoe_server.report.report import table
from model.build import initial_arrays
from strategies.sums.layer import largest_weight

TIMED = 20  # clients whose training is timed
METRICS = 12  # more or less of them make no difference


def main(words: Sequence[str]) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.deployment.wire", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--clients", type=int, nargs="+", default=[20, 200], help="clients of a round, who are trained")
    return exit_status(lambda: _print(parser.parse_args(words)))


def masked_bytes(settings: Settings, arrays: NamedArrays, clients: int) -> int:
    """Return the bytes of a masked vector in which all arrays are added up and the rows of the item table counted."""
    shapes = {name: array.shape for name, array in arrays.items()}
    terms = _terms(settings, clients)
    words = entries(shapes, {}, METRICS, terms) + len(arrays[TABLE])
    return words * terms.dtype.itemsize


def parted_bytes(settings: Settings, arrays: NamedArrays, clients: int, rows: int) -> int:
    """Return the bytes of the two masked vectors of a client: the counts of rows, and all arrays at those touched."""
    terms = _terms(settings, clients)
    shapes = {name: array.shape for name, array in arrays.items()}
    values = entries(shapes, {TABLE: np.arange(rows)}, METRICS, terms) * terms.dtype.itemsize
    return values + len(arrays[TABLE]) * word_type(terms.count_bits).itemsize


def answer(settings: Settings, arrays: NamedArrays, user: int, terms: Terms | None = None) -> NamedArrays:
    """Return what a user's client sends in plain, all groups shared. terms: of its integers; None: floats."""
    asked: dict[str, Any] = {} if terms is None else terms.to_config()
    return sent_by(workbench(to_run_config(settings)), user, pack(arrays), **asked)


def _terms(settings: Settings, clients: int) -> Terms:
    return Terms(settings.privacy.sum_bits or 20, clients, settings.privacy.update_norm, largest_weight(settings))


def _print(given: argparse.Namespace) -> None:
    settings = job(given.settings)
    known = load_dataset(settings).interactions
    arrays = initial_arrays(settings, load_dataset(settings))
    most = min(max(given.clients), known.num_users)
    users = generator(settings.seed, "wire").choice(known.num_users, most, replace=False)
    answers = [answer(settings, arrays, int(user)) for user in users]
    touched = [each.get(TABLE + ROWS, np.arange(len(arrays[TABLE]))) for each in answers]
    plain = float(np.mean([len(pack(each)) for each in answers]))
    trained = partial(answer, settings, arrays)
    alone = _seconds(trained, users[:TIMED])
    numbers = sum(prod(array.shape) for array in arrays.values())
    print(
        f"{settings.name}: {known.num_items} items, {numbers} numbers, {len(pack(arrays)) / 1e6:.2f} MB to each client"
    )
    rows = [["plain", "", f"{plain / 1e6:.2f}", "1", f"{alone:.3f}", ""]]
    for clients in given.clients:
        union, terms = len(np.unique(np.concatenate(touched[:clients]))), _terms(settings, clients)
        answered = _seconds(partial(trained, terms=terms), users[:TIMED])
        whole, parted = masked_bytes(settings, arrays, clients), parted_bytes(settings, arrays, clients, union)
        for name, summed, masked in (("whole", len(arrays[TABLE]), whole), ("rows first", union, parted)):
            client, server = seconds_of_a_sum(masked // terms.dtype.itemsize, terms.ring_bits, clients)
            words = [f"masked, {clients} clients a round, {name}", str(summed), f"{masked / 1e6:.2f}"]
            rows.append([*words, f"{masked / plain:.1f}", f"{answered + client:.3f}", f"{server:.2f}"])
    columns = ["", "rows of items", "MB from each client", "times", "CPU s of a client", "CPU s of the server"]
    print(table(columns, rows))


def _seconds(do: Callable[[int], object], users: Iterable[int]) -> float:
    """Return the median of the processor seconds that something takes for each user."""
    found = []
    for user in users:
        begun = time.process_time()
        do(int(user))
        found.append(time.process_time() - begun)
    return median(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
