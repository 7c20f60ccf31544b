"""Popularity, central and federated variants on one data set, with several seeds.

Writes a Markdown page with means and standard deviations over seeds, paired tests over users, and slices by history
length, item popularity and modality. Results that are in the
folder already are not measured again, so the page can be extended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.central import CentralPlan, passes, train_centrally
from benchmarks.quality.figures import comparison_table, draw, main_table, slice_table, slices_of
from benchmarks.runs import Kept, Ranks, changed, check_names, job, ranks_of, slug
from benchmarks.tables import write_page
from data.dataset import Dataset
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.settings import EvaluationSettings, Settings
from fedmoe_api.chosen import load_chosen
from fedmoe_api.simulation import federate
from fedmoe_client.learning.evaluation import catalogue_scorer, popularity_scorer
from fedmoe_server.report.client_ranks import read_client_ranks

SAMPLED = EvaluationSettings(protocol="sampled", num_candidates=100)
_SASREC = {"model.mixture": False, "model.item_representation": "id"}
_CONTENT = {"model.item_representation": "id+content"}
NOISE = "federated mixture, noise"  # in place of all feature files
# A variant's first word is the kind of training; its settings, by their full keys, stand over the command line's.
VARIANTS: dict[str, dict[str, Any]] = {
    "popularity": {},
    "central SASRec, id": _SASREC,
    "central mixture": {},
    "central mixture, id+content": _CONTENT,
    "federated SASRec, id": _SASREC,
    "federated SASRec, id+content": {**_SASREC, **_CONTENT},
    "federated mixture": {},
    "federated mixture, id+content": _CONTENT,
    "federated mixture, all shared": {"federation.shared": "all"},
    NOISE: {},
}
# What is to be read off the rows, each pair only where both were run: the first over the second.
COMPARISONS: tuple[tuple[str, str], ...] = (
    ("federated SASRec, id", "central SASRec, id"),
    ("federated mixture", "central mixture"),
    ("federated mixture, id+content", "central mixture, id+content"),
    ("federated SASRec, id+content", "federated SASRec, id"),
    ("federated mixture", "federated SASRec, id"),
    ("federated mixture, personalised", "federated SASRec, id, personalised"),
    ("federated mixture", "federated SASRec, id+content"),
    ("federated mixture, personalised", "federated SASRec, id+content, personalised"),
    ("federated mixture, id+content", "federated SASRec, id"),
    ("federated mixture, id+content", "federated SASRec, id+content"),
    ("federated mixture, id+content", "federated mixture"),
    ("federated mixture, noise", "federated SASRec, id"),
    *((f"{row}, personalised", row) for row in ("federated SASRec, id", "federated SASRec, id+content")),
    *((f"{row}, personalised", row) for row in ("federated mixture", "federated mixture, id+content")),
    ("federated mixture, all shared", "federated mixture"),
    ("federated mixture, personalised", "federated mixture, all shared"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="names of variants; default: all")
    parser.add_argument("--against", default="federated SASRec, id", help="the row that the others are tested against")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="where runs and the page are kept")


def run(given: argparse.Namespace) -> None:
    """Train what is missing and write the page."""
    base = job(given.settings)
    check_names([*given.variants, given.against], VARIANTS, "variant")
    if base.data.dataset == "synthetic" and given.seeds != [base.seed]:
        # The seed makes the histories as well: another one's users are others.
        raise FedMoEError(
            f"synthetic data are those of one seed: name it twice, seed={given.seeds[0]} --seeds {given.seeds[0]}"
        )
    folder = given.folder / base.name
    kept = Kept(folder)
    names = [name for name in VARIANTS if name in {given.against, *given.variants}]
    found = {name: [variant_ranks(name, base, seed, folder, kept) for seed in given.seeds] for name in names}
    rows: dict[str, list[Ranks]] = {}
    for name, seeds in found.items():
        rows[name] = [ranks["full"] for ranks in seeds]
        if any("personal" in ranks and (ranks["personal"] != ranks["full"]).any() for ranks in seeds):
            rows[f"{name}, personalised"] = [ranks["personal"] for ranks in seeds]
    sampled, validation = (
        {name: [ranks[kind] for ranks in seeds] for name, seeds in found.items()} for kind in ("sampled", "validation")
    )
    slices = slices_of(load_dataset(base))
    draw(rows, slices, base.name, folder / "quality.png")
    parts = [
        main_table(rows, sampled, given.against),
        comparison_table(rows, validation, COMPARISONS, slices),
        slice_table(rows, slices),
        "![NDCG@10](quality.png)",
    ]
    write_page(folder / "quality.md", f"# {base.name}\n\n    {given.command}", parts)


def variant_ranks(name: str, base: Settings, seed: int, folder: Path, kept: Kept) -> dict[str, Ranks]:
    """Return each user's ranks in a variant with a seed, trained now or before.

    full, validation: of the test and the validation item among all unseen items, with the server's or central model;
    sampled: of the test item among itself and 100 sampled items; personal, of federated runs: full with the clients'
    private parameters.
    """
    print(f"seed {seed}: {name}", flush=True)
    label, kind = f"{slug(name)}-{seed}", name.split()[0]
    settings = settings_of(base, name, seed, folder).model_copy(update={"name": label})
    dataset = load_dataset(settings)
    histories = sha256(dataset.interactions.items.tobytes() + dataset.interactions.offsets.tobytes()).hexdigest()
    about = {
        "data": dataset.fingerprints() | {"histories": histories},
        "plan": asdict(CentralPlan(passes(settings))) if kind == "central" else None,
        "settings": settings.model_dump(mode="json", exclude={"save_dir", "name"}),
    }

    def train() -> dict[str, Any]:
        return {which: ranks.tolist() for which, ranks in _trained(kind, settings, dataset).items()}

    return {which: np.array(ranks) for which, ranks in kept.get(label, about, train).items()}


def settings_of(base: Settings, variant: str, seed: int, folder: Path) -> Settings:
    """Return the settings of a variant with a seed."""
    modalities = noisy(base) if variant == NOISE else base.model_dump(mode="json")["modalities"]
    return changed(base, VARIANTS[variant], modalities=modalities, seed=seed, save_dir=str(folder / "runs"))


def noisy(base: Settings) -> dict[str, Any]:
    """Return the settings of the modalities with noise in place of all features that are named."""
    modalities: dict[str, Any] = base.model_dump(mode="json")["modalities"]
    for each in modalities.values():
        if each is not None and each["file"] is not None:
            each["file"] = "noise"
    return modalities


def _trained(kind: str, settings: Settings, dataset: Dataset) -> dict[str, Ranks]:
    personal: Sequence[float] = ()
    if kind == "popularity":
        scorer = popularity_scorer(dataset.interactions)
    elif kind == "central":
        plan = CentralPlan(passes(settings))
        scorer = catalogue_scorer(train_centrally(settings, dataset, plan, partial(print, flush=True))[0])
    else:
        run_dir = federate(settings)
        scorer = catalogue_scorer(load_chosen(run_dir, settings, dataset)[0].model)
        personal = [rank.personal for rank in read_client_ranks(run_dir) if rank.split == "test"]
    return {
        "full": ranks_of(scorer, settings, dataset),
        "validation": ranks_of(scorer, settings, dataset, "validation"),
        "sampled": ranks_of(scorer, settings, dataset, sampled=SAMPLED),
        **({"personal": np.array(personal)} if len(personal) else {}),
    }
