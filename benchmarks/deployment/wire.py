"""``python -m benchmarks.deployment.wire [CONFIG] [key=value ...]``: bytes a client and round, plain and masked.

In plain a client sends the rows of the item table that it touched, so that is a mean over users; a masked vector is the
whole table for everybody. What the server sends, the model, is the same. The messages of the other four phases come on
top: docs/secure-aggregation.md has their sizes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import prod

import numpy as np

from benchmarks.runs import exit_status, job, sent_by
from data.registry import load_dataset
from data.sampling import generator
from fedmoe.loading import to_run_config
from fedmoe.settings import Settings
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import entries
from fedmoe.wire import NamedArrays, pack
from fedmoe_client.learning.client import workbench
from fedmoe_client.learning.own_client import TABLE
from fedmoe_server.report.report import table
from model.build import initial_arrays
from strategies.sums.layer import largest_weight

METRICS = 12  # more or less of them make no difference


def main(words: Sequence[str]) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.deployment.wire", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--users", type=int, default=20, help="users whose replies in plain are looked at")
    parser.add_argument("--clients", type=int, nargs="+", default=[20, 1000], help="clients of a round")
    return exit_status(lambda: _print(parser.parse_args(words)))


def masked_bytes(settings: Settings, arrays: NamedArrays, clients: int) -> int:
    """Return the bytes of a masked vector in which all arrays are added up and the rows of the item table counted."""
    shapes = {name: array.shape for name, array in arrays.items()}
    terms = Terms(settings.privacy.sum_bits or 20, clients, settings.privacy.update_norm, largest_weight(settings))
    words = entries(shapes, {}, METRICS, terms) + len(arrays[TABLE])
    return words * terms.dtype.itemsize


def plain_bytes(settings: Settings, arrays: NamedArrays, user: int) -> int:
    """Return the bytes of the arrays that a user's client sends in plain, all groups shared."""
    return len(pack(sent_by(workbench(to_run_config(settings)), user, pack(arrays))))


def _print(given: argparse.Namespace) -> None:
    settings = job(given.settings)
    known = load_dataset(settings).interactions
    arrays = initial_arrays(settings, load_dataset(settings))
    users = generator(settings.seed, "wire").choice(known.num_users, min(given.users, known.num_users), replace=False)
    plain = float(np.mean([plain_bytes(settings, arrays, int(user)) for user in users]))
    numbers = sum(prod(array.shape) for array in arrays.values())
    print(
        f"{settings.name}: {known.num_items} items, {numbers} numbers, {len(pack(arrays)) / 1e6:.2f} MB to each client"
    )
    rows = [["plain", f"{plain / 1e6:.2f}", "1"]]
    for clients in given.clients:
        masked = masked_bytes(settings, arrays, clients)
        rows.append([f"masked, {clients} clients a round", f"{masked / 1e6:.2f}", f"{masked / plain:.1f}"])
    print(table(["", "MB from each client", "times"], rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
