"""``python -m benchmarks.personalisation RUN_FOLDER ...``: is it the user's own parameters that help?

Ranks each user's test item four times: with the server's model alone, with the user's private parameters in it, with
the mean of all users' private parameters, and with those of another user, drawn at random. What the last two gain is
none of the user's own: the server's copy of a private group stays as it was at the end of the warm-up, while all that
is shared goes on training. Of several runs, one a seed, each user's mean is taken; those of ``benchmarks.quality`` are
in ``runs/`` beside its page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.finished_runs import load_chosen
from benchmarks.quality_tables import Floats, compared, slices_of
from data.registry import Dataset, load_dataset
from data.sampling import generator
from fedmoe.errors import FedMoEError
from fedmoe.loading import read_yaml, settings_from
from fedmoe.settings import Settings
from fedmoe_client.learning.evaluation import Scorer, catalogue_scorer, model_scorer, ranks
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.private import NamedArrays, PrivateParameters
from fedmoe_server.app import aggregation_schedule
from fedmoe_server.report.run_folder import SETTINGS, federated_metrics
from model.groups import parameter_names
from simulation.flower_runtime import records_from_bytes
from simulation.ray.client_files import read_clients, read_index

SERVER, OWN, MEAN, OTHER = "the server's", "the user's own", "the mean of all", "another user's"
PAIRS = ((OWN, SERVER), (MEAN, SERVER), (OTHER, SERVER), (OWN, MEAN), (OWN, OTHER))


def main(words: Sequence[str]) -> int:
    """Rank and print the tables; return the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.personalisation", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="simulated runs, alike but for seed")
    given = parser.parse_args(words)
    torch.set_num_threads(1)  # users are ranked one by one, which is too little for threads to share
    rows: dict[str, list[Floats]] = {name: [] for name in (SERVER, OWN, MEAN, OTHER)}
    try:
        every = settings_of(given.runs)
        datasets = [load_dataset(settings.data, settings.seed) for settings in every]
        if any(not np.array_equal(datasets[0].interactions.items, each.interactions.items) for each in datasets):
            raise FedMoEError("the runs have other histories: name runs of one data set")
        for run_dir, settings, dataset in zip(given.runs, every, datasets, strict=True):
            for name, found in ranks_of_run(run_dir, settings, dataset).items():
                rows[name].append(found)
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(whose_table(rows))
    print()
    print(gain_by_slice(rows, slices_of(datasets[0])))
    return 0


def settings_of(runs: Sequence[Path]) -> list[Settings]:
    """Return the settings of runs whose mean may be taken.

    Raises FedMoEError if a run has not completed, or if two have the same seed or differ in more than that.
    """
    found: list[Settings] = []
    for run_dir in runs:
        federated_metrics(run_dir)  # refuses a run that has not completed
        found.append(settings_from(read_yaml(str(run_dir / SETTINGS))))
    aside = {"seed", "name", "save_dir", "simulation"}
    for settings, run_dir in zip(found[1:], runs[1:], strict=True):
        if settings.model_dump(exclude=aside) != found[0].model_dump(exclude=aside):
            raise FedMoEError(f"{run_dir} and {runs[0]} differ in more than their seeds: name runs that are alike")
    if len({settings.seed for settings in found}) < len(found):
        raise FedMoEError("two of the runs have the same seed: name one run a seed")
    return found


def whose_table(rows: Mapping[str, Sequence[Floats]]) -> str:
    """Return a Markdown table: what one kind of private parameters has over another. rows: ranks, one array a run."""
    lines = ["| this | over this | NDCG@10 | p | rank | p |", "|---|---|---:|---:|---:|---:|"]
    lines += [f"| {this} | {other} | " + " | ".join(compared(rows[this], rows[other])) + " |" for this, other in PAIRS]
    return "\n".join(lines)


def gain_by_slice(rows: Mapping[str, Sequence[Floats]], slices: Mapping[str, NDArray[np.bool_]]) -> str:
    """Return a Markdown table: what the user's own parameters have over the server's, in each slice of the users."""
    lines = ["| the user's own over the server's | users | NDCG@10 | p | rank | p |", "|---|---:|---:|---:|---:|---:|"]
    for name, members in slices.items():
        own, server = ([found[members] for found in rows[kind]] for kind in (OWN, SERVER))
        lines.append(f"| {name} | {members.sum()} | " + " | ".join(compared(own, server)) + " |")
    return "\n".join(lines)


def ranks_of_run(run_dir: Path, settings: Settings, dataset: Dataset) -> dict[str, Floats]:
    """Return the ranks of all users' test items, by whose private parameters are in the server's model.

    Raises FedMoEError if the run has no checkpoint, or its clients keep nothing that is private in its best round.
    """
    users = np.arange(dataset.interactions.num_users)
    bench = Workbench(settings, dataset)
    checkpoint = load_chosen(bench, run_dir)
    if checkpoint.clients is None:
        raise FedMoEError(f"{run_dir} holds no private state: name a simulated run, with the engine ray or vectorized")
    _, best_round = checkpoint.state.chosen()
    private = aggregation_schedule(settings, parameter_names(bench.model)).private_names(best_round)
    kept = private_parameters(checkpoint.clients, len(users), private)
    if not kept:
        raise FedMoEError(
            f"{run_dir}: no client uses private parameters with the model of round {best_round}: name a run with "
            "private groups (federation.shared) whose best round is after its warm-up"
        )
    mean = {name: np.asarray(np.mean([own[name] for own in kept.values()], axis=0)) for name in private}
    shuffled = generator(settings.seed, "another user").permutation(sorted(kept)).tolist()
    others = dict(zip(shuffled, [*shuffled[1:], shuffled[0]], strict=True))
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


def private_parameters(folder: Path, users: int, names: Sequence[str]) -> dict[int, NamedArrays]:
    """Return what clients keep under these names, by the client's number; without those that lack any.

    folder: the clients' private state in a checkpoint.
    """
    kept = {}
    for file in read_index(folder, users):
        for client, state in read_clients(file, lambda _: True):
            own = PrivateParameters(records_from_bytes(state)).load()
            if names and all(name in own for name in names):
                kept[client] = {name: own[name] for name in names}
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
