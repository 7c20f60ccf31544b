"""``python -m benchmarks.personalisation RUN_FOLDER ...``: is it the user's own parameters that help?

Ranks each user's test item four times: with the server's model alone, with the user's private parameters in it, with
the mean of all users' private parameters, and with those of another user, drawn at random. What the last two gain is
none of the user's own: the server's copy of a private group stays as it was at the end of the warm-up, while all that
is shared goes on training. Of several runs, one a seed, each user's mean is taken; ``benchmarks.quality`` leaves them
in ``runs/`` of its folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attack_runs import model_of
from benchmarks.quality_tables import Floats, compared, slices_of
from data.registry import Dataset, load_dataset
from data.sampling import generator
from errors import FedMoEError
from fedmoe_client.evaluation import Scorer, catalogue_scorer, model_scorer, ranks
from fedmoe_client.state import NamedArrays, PrivateParameters
from fedmoe_server.checkpoints import CLIENTS, find_checkpoint
from fedmoe_server.run_folder import SETTINGS
from settings import Settings
from settings_loading import read_yaml, settings_from
from simulation.client_files import read_clients, read_index
from simulation.flower_runtime import records_from_bytes

SERVER, OWN, MEAN, OTHER = "the server's", "the user's own", "the mean of all", "another user's"
PAIRS = ((OWN, SERVER), (MEAN, SERVER), (OTHER, SERVER), (OWN, MEAN), (OWN, OTHER))


def main(words: Sequence[str]) -> int:
    """Rank and print the tables; return the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.personalisation", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="simulated runs, alike but for seed")
    given = parser.parse_args(words)
    rows: dict[str, list[Floats]] = {name: [] for name in (SERVER, OWN, MEAN, OTHER)}
    first: Dataset | None = None
    torch.set_num_threads(1)  # users are ranked one by one, which is too little for threads to share
    try:
        for run_dir in given.runs:
            settings = settings_from(read_yaml(str(run_dir / SETTINGS)))
            dataset = load_dataset(settings.data, settings.seed)
            first = first or dataset
            if not np.array_equal(dataset.interactions.items, first.interactions.items):
                raise FedMoEError(f"{run_dir} has other histories than {given.runs[0]}: name runs of one data set")
            for name, found in ranks_of_run(run_dir, settings, dataset).items():
                rows[name].append(found)
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    assert first is not None
    print(table(rows))
    print()
    print(slice_table(rows, slices_of(first)))
    return 0


def table(rows: Mapping[str, Sequence[Floats]]) -> str:
    """Return a Markdown table: what one kind of private parameters has over another. rows: ranks, one array a run."""
    lines = ["| this | over this | NDCG@10 | p | rank | p |", "|---|---|---:|---:|---:|---:|"]
    lines += [f"| {own} | {other} | " + " | ".join(compared(rows[own], rows[other])) + " |" for own, other in PAIRS]
    return "\n".join(lines)


def slice_table(rows: Mapping[str, Sequence[Floats]], slices: Mapping[str, NDArray[np.bool_]]) -> str:
    """Return a Markdown table: what the user's own parameters have over the server's, in each slice of the users."""
    lines = ["| the user's own over the server's | users | NDCG@10 | p | rank | p |", "|---|---:|---:|---:|---:|---:|"]
    for name, members in slices.items():
        cells = compared(*([ranks[members] for ranks in rows[kind]] for kind in (OWN, SERVER)))
        lines.append(f"| {name} | {members.sum()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ranks_of_run(run_dir: Path, settings: Settings, dataset: Dataset) -> dict[str, Floats]:
    """Return the ranks of all users' test items, by whose private parameters are in the server's model.

    Raises FedMoEError if the run has no checkpoint, or its clients kept nothing.
    """
    users = np.arange(dataset.interactions.num_users)
    kept = private_parameters(run_dir, len(users))
    private = list(next(iter(kept.values())))
    mean = {name: np.asarray(np.mean([own[name] for own in kept.values()], axis=0)) for name in private}
    shuffled = generator(settings.seed, "another user").permutation(sorted(kept)).tolist()
    others = dict(zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True))
    bench = model_of(settings, dataset, run_dir)
    server = bench.take(bench.names)
    length = max(settings.model.max_seq_len, settings.model.memory_size)

    def rank(scorer: Scorer, whose: NDArray[np.int64]) -> Floats:
        return ranks(scorer, dataset.interactions, whose, "test", settings.evaluation, settings.seed, length)

    def with_private(values: Mapping[int, NamedArrays]) -> Floats:
        found = []
        for user in users:
            arrays = server | values.get(int(user), {})
            bench.load({name: arrays[name] for name in private})
            found.append(rank(model_scorer(bench.model, bench.catalogue_side(arrays)), users[user : user + 1]))
        return np.concatenate(found)

    return {
        SERVER: rank(catalogue_scorer(bench.model), users),
        OWN: with_private(kept),
        MEAN: with_private(dict.fromkeys(kept, mean)),
        OTHER: with_private({user: kept[other] for user, other in others.items()}),
    }


def private_parameters(run_dir: Path, users: int) -> dict[int, NamedArrays]:
    """Return what each client of a simulated run keeps, by its number; clients that keep nothing are left out."""
    checkpoint = find_checkpoint(run_dir)
    kept = {}
    for file in read_index(checkpoint / CLIENTS, users):
        for client, state in read_clients(file, lambda _: True):
            if own := PrivateParameters(records_from_bytes(state)).load():
                kept[client] = own
    if not kept:
        raise FedMoEError(f"{run_dir}: no client keeps private parameters: name a run with private groups")
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
