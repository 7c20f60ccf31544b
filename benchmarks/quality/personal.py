"""Whose private parameters improve a user's ranking?

Ranks each user's test item four times: with the server's model alone, with the user's private parameters in it, with
the mean of all users' private parameters, and with those of another user, drawn at random. The last two are
controls: the server's copy of a private group stays as it was at the end of the warm-up while the shared parameters go
on training, so other users' newer values may help as well. Several runs, one a seed, are averaged for each user; the
runs of the command ``compare`` are in ``runs/`` beside its page.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.figures import Rows, Slices, compared, slices_of
from benchmarks.runs import Ranks, ranks_of
from data.dataset import Dataset
from data.registry import load_dataset
from data.sampling import generator
from fedmoe.errors import FedMoEError
from fedmoe.loading import settings_of_run
from fedmoe.settings import Settings
from fedmoe_api.chosen import load_chosen, private_names, private_parameters
from fedmoe_client.learning.evaluation import catalogue_scorer, model_scorer
from fedmoe_client.store.private import NamedArrays
from fedmoe_server.report.report import table
from fedmoe_server.report.run_folder import federated_metrics

SERVER, OWN, MEAN, OTHER = "the server's", "the user's own", "the mean of all", "another user's"
PAIRS = ((OWN, SERVER), (MEAN, SERVER), (OTHER, SERVER), (OWN, MEAN), (OWN, OTHER))
HEAD = ["NDCG@10", "p", "rank", "p"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="simulated runs, alike but for seed")


def run(given: argparse.Namespace) -> None:
    """Rank and print the tables."""
    torch.set_num_threads(1)  # users are ranked one by one, which is too little for threads to share
    every = settings_of(given.runs)
    datasets = [load_dataset(settings) for settings in every]
    if any(not np.array_equal(datasets[0].interactions.items, each.interactions.items) for each in datasets):
        raise FedMoEError("the runs have other histories: name runs of one data set")
    found = [ranks_of_run(*each) for each in zip(given.runs, every, datasets, strict=True)]
    rows = {whose: [ranks[whose] for ranks in found] for whose in (SERVER, OWN, MEAN, OTHER)}
    print(f"{whose_table(rows)}\n\n{gain_by_slice(rows, slices_of(datasets[0]))}")


def settings_of(runs: Sequence[Path]) -> list[Settings]:
    """Return the settings of runs whose mean may be taken.

    Raises FedMoEError if a run has not completed, or if two have the same seed or differ in more than that.
    """
    found: list[Settings] = []
    for run_dir in runs:
        federated_metrics(run_dir)  # refuses a run that has not completed
        found.append(settings_of_run(run_dir))
    aside = {"seed", "name", "save_dir", "simulation"}
    for settings, run_dir in zip(found[1:], runs[1:], strict=True):
        if settings.model_dump(exclude=aside) != found[0].model_dump(exclude=aside):
            raise FedMoEError(f"{run_dir} and {runs[0]} differ in more than their seeds: name runs that are alike")
    if len({settings.seed for settings in found}) < len(found):
        raise FedMoEError("two of the runs have the same seed: name one run a seed")
    return found


def whose_table(rows: Rows) -> str:
    """Return what one kind of private parameters has over another."""
    lines = [[this, other, *compared(rows[this], rows[other])] for this, other in PAIRS]
    return table(["this", "over this", *HEAD], lines, (0, 1))


def gain_by_slice(rows: Rows, slices: Slices) -> str:
    """Return what the user's own parameters have over the server's, in each slice of the users."""
    lines = []
    for name, members in slices.items():
        own, server = ([found[members] for found in rows[kind]] for kind in (OWN, SERVER))
        lines.append([name, str(members.sum()), *compared(own, server)])
    return table(["the user's own over the server's", "users", *HEAD], lines)


def ranks_of_run(run_dir: Path, settings: Settings, dataset: Dataset) -> dict[str, Ranks]:
    """Return the ranks of all users' test items, by whose private parameters are in the server's model.

    Raises FedMoEError if the run has no checkpoint, or its clients keep nothing that is private in its best round.
    """
    users = np.arange(dataset.interactions.num_users)
    bench, checkpoint = load_chosen(run_dir, settings, dataset)
    if checkpoint.clients is None:
        raise FedMoEError(f"{run_dir} holds no private state: name a simulated run, with the engine ray or vectorized")
    _, best_round = checkpoint.state.chosen()
    private = private_names(bench, checkpoint)
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

    def with_private(values: Mapping[int, NamedArrays]) -> Ranks:
        found = []
        for user in users:
            arrays = server | values.get(int(user), {})
            bench.load({name: arrays[name] for name in private})
            scorer = model_scorer(bench.model, bench.catalogue_side(arrays))
            found.append(ranks_of(scorer, settings, dataset, users=users[user : user + 1]))
        return np.concatenate(found)

    return {
        SERVER: ranks_of(catalogue_scorer(bench.model), settings, dataset),
        OWN: with_private(kept),
        MEAN: with_private(dict.fromkeys(kept, mean)),
        OTHER: with_private({user: kept[other] for user, other in others.items()}),
    }
