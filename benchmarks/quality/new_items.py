"""Items that nobody has met: the model with real features, with noise, and what needs no training, over several seeds.

A run's ``data.new_items`` (a tenth by default) is withheld from all training. Each seed withholds other items, so a
table's figures are means over the cases of all seeds; tests are paired over these cases. Each trained row is shown as
it ranks, and with the places ``PLACES`` of each list given to its best new items. Results that are in the folder are
not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.compare import noisy
from benchmarks.quality.figures import gain, hit_rate, paired_p
from benchmarks.runs import Kept, Ranks, changed, check_names, context_length, job, ranks_of, slug
from benchmarks.tables import write_page
from data.dataset import Dataset
from data.registry import load_dataset
from fedmoe.settings import Settings
from fedmoe_api.chosen import load_chosen
from fedmoe_api.simulation import federate
from fedmoe_client.learning.evaluation import Scorer, catalogue_scorer, popularity_scorer
from fedmoe_client.learning.new_items import NEIGHBOURS, neighbours_scorer, new_item_ranks
from fedmoe_server.report.report import table

_CONTENT = {"model.item_representation": "id+content"}
MODEL, NOISE = "mixture, id+content", "mixture, id+content, noise"
# A trained row's settings, by their full keys, stand over the command line's.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "popularity": {},
    NEIGHBOURS: {},
    NOISE: _CONTENT,
    "mixture, id": {"model.item_representation": "id"},
    MODEL: _CONTENT,
}
PLACES = (10, *range(41, 51))  # of a list, from 1
KINDS = ("new", "among", "test", "others")
GIVEN = "place 10 and 41 to 50 for new items"
Found = Mapping[str, Ranks]
"""Ranks by what they are of and among: ``new`` items among all, ``among`` the new ones; ``test`` items among all, and
among all but the new ones (``others``)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="names of rows; default: all")
    parser.add_argument("--folder", type=Path, default=Path("runs/new-items"), help="where runs and the page are kept")


def run(given: argparse.Namespace) -> None:
    """Train what is missing and write the page."""
    base = job(given.settings, ["data.new_items=0.1"])
    check_names(given.rows, ROWS, "row")
    folder = given.folder / base.name
    kept = Kept(folder)
    names = [name for name in ROWS if name in {NEIGHBOURS, *given.rows}]
    found = {name: [row_ranks(name, base, seed, folder, kept) for seed in given.seeds] for name in names}
    write_page(folder / "new_items.md", f"# {base.name}\n\n    {given.command}", [new_item_table(found)])


def row_ranks(name: str, base: Settings, seed: int, folder: Path, kept: Kept) -> Found:
    """Return the ranks of a row with a seed, trained now or before."""
    print(f"seed {seed}: {name}", flush=True)
    label = f"{slug(name)}-{seed}"
    modalities = noisy(base) if name == NOISE else base.model_dump(mode="json")["modalities"]
    settings = changed(base, ROWS[name], modalities=modalities, seed=seed, save_dir=str(folder / "runs"), name=label)
    dataset = load_dataset(settings)
    about = {
        "data": dataset.all_fingerprints(),
        "settings": settings.model_dump(mode="json", exclude={"save_dir", "name"}),
    }

    def measure() -> dict[str, Any]:
        scorer = _scorer(name, settings, dataset)
        assert dataset.new is not None
        new, among = new_item_ranks(scorer, dataset, dataset.new.users, context_length(settings))
        test, others = (ranks_of(each, settings, dataset) for each in (scorer, _without(dataset.new.items, scorer)))
        return {name: ranks.tolist() for name, ranks in zip(KINDS, (new, among, test, others), strict=True)}

    return {which: np.array(ranks) for which, ranks in kept.get(label, about, measure).items()}


def _scorer(name: str, settings: Settings, dataset: Dataset) -> Scorer:
    if name == "popularity":
        return popularity_scorer(dataset.interactions)
    if name == NEIGHBOURS:
        return neighbours_scorer(dataset)
    return catalogue_scorer(load_chosen(federate(settings), settings, dataset)[0].model)


def _without(items: NDArray[np.int32], scorer: Scorer) -> Scorer:
    """Return a scorer that puts these items last."""

    def scores(contexts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        found = scorer(contexts, candidates)
        return np.where(np.isin(candidates, items), np.float32(-np.inf), found)

    return scores


def given_places(found: Found, places: Sequence[int] = PLACES) -> Found:
    """Return the ranks where the best new items get these places of each list and the others go around them."""
    count = int(max(found["others"].max(), 1)) + 1
    free = np.setdiff1d(np.arange(1, count + len(places) + 1), places)
    order = np.ceil(found["among"]).astype(np.int64) - 1  # half a place is lost whole
    new = np.where(order < len(places), np.array(places)[np.minimum(order, len(places) - 1)], np.inf)
    return {**found, "new": new, "test": free[np.ceil(found["others"]).astype(np.int64) - 1].astype(np.float64)}


def new_item_table(found: Mapping[str, Sequence[Found]]) -> str:
    """Return HR@10 and HR@50 of the new items, each over nearest by content with p, and NDCG@10 of the other items.

    ``change``: of that, against the same scores with the new items last.
    """
    rows: dict[str, Found] = {}
    for name, seeds in found.items():
        rows[name] = {which: np.concatenate([seed[which] for seed in seeds]) for which in KINDS}
        if ROWS[name]:
            rows[f"{name}, {GIVEN}"] = given_places(rows[name])
    lines = []
    for name, ranks in rows.items():
        cells = [name]
        for cutoff in (10, 50):
            own, base = hit_rate(ranks["new"], cutoff), hit_rate(rows[NEIGHBOURS]["new"], cutoff)
            over = f"{own.mean() / base.mean():.2f}" if base.any() and name != NEIGHBOURS else ""
            cells += [f"{own.mean():.4f}", over, f"{paired_p(own, base):.3f}" if name != NEIGHBOURS else ""]
        test, others = gain(ranks["test"]).mean(), gain(ranks["others"]).mean()
        change = f"{test / others - 1:+.1%}" if others > 0 else ""
        lines.append([*cells, f"{hit_rate(ranks['among'], 10).mean():.4f}", f"{test:.4f}", change])
    head = ["new items", "HR@10", "over nearest", "p", "HR@50", "over nearest", "p"]
    return table([*head, "HR@10 among new", "other items, NDCG@10", "change"], lines)
