"""``python -m benchmarks.attacks [CONFIG] [key=value ...]``: attacks against defences.

Runs the shortened default job for each attack and defence. Writes a page with tables and a picture: HR@10 on test, the
exposure ER@10 of a promoted cold item, and how well updates reveal a history. Runs that are in the folder already are
not repeated, so the page can be extended.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.attacks.leaks import leak
from benchmarks.attacks.runs import ATTACKS, DEFENCES, LEAKS, SHORT, Outcome, meets, outcome, settings_of
from benchmarks.runs import Kept, check_names, exit_status, job
from benchmarks.tables import bars, write_page
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from fedmoe_api.chosen import load_chosen
from fedmoe_server.report.report import table
from model.build import arrays_of

Grid = Mapping[tuple[str, str], Sequence[Outcome]]
"""(defence, attack) -> one outcome a seed; each defence has the attack "none"."""
DAMAGE = """HR@10 on test of the server's model over all users; ER@10: share of the honest users who never met the
promoted item and have it in their top 10. Means over seeds."""
TOLD = """AUC of "did this user meet this item", mean over users; .5 is chance. Server: from a user's replies. Public:
from the mean of the cohort, which is all that others ever see."""


def main(words: Sequence[str]) -> int:
    """Run what is missing and write the page; return the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.attacks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), help="names of attacks; default: all")
    parser.add_argument("--defences", nargs="*", default=list(DEFENCES), help="names of defences; default: all")
    parser.add_argument("--leak_users", type=int, default=50, help="users whose updates are looked into; 0: none")
    parser.add_argument("--leak_rounds", type=int, default=5, help="rounds in which the server watches them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--folder", type=Path, default=Path("runs/attacks"), help="where runs and the page are kept")
    return exit_status(lambda: _measure(parser.parse_args(words), shlex.join(words)))


def _measure(given: argparse.Namespace, words: str) -> None:
    check_names(given.attacks, ATTACKS, "attack")
    check_names(given.defences, DEFENCES, "defence")
    base = job(given.settings, SHORT)
    folder: Path = given.folder / base.name
    kept = Kept(folder)
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    for cell in product(given.defences, dict.fromkeys(["none", *given.attacks])):
        if meets(*cell):
            outcomes[cell] = [outcome(kept, base, folder, *cell, seed) for seed in given.seeds]
    parts = []
    if outcomes:
        draw(outcomes, folder / "attacks.png")
        parts = ["## Damage and defence", DAMAGE, outcome_table(outcomes), "![damage and defence](attacks.png)"]
    if given.leak_users:
        clean = outcome(kept, base, folder, "defaults", "none", given.seeds[0])
        if clean.error:
            raise FedMoEError(f"there is no clean model to look for leaks with: {clean.error}")
        parts += ["## What updates tell", TOLD, _leaks(base, Path(clean.run_dir), folder, given)]
    head = f"# {base.name}: attacks and leaks\n\n    python -m benchmarks.attacks {words}"
    write_page(folder / "attacks.md", head, parts)


def _leaks(base: Settings, clean: Path, folder: Path, given: argparse.Namespace) -> str:
    """Return what clients leak that train on the model of a clean run, a line for each setting and score."""
    rows = []
    for name, changes in LEAKS.items():
        print(f"leak: {name}", flush=True)
        settings = settings_of(base, changes, given.seeds[0], folder, "leak")
        dataset = load_dataset(settings)
        arrays = arrays_of(load_chosen(clean, settings, dataset)[0].model)
        found = leak(settings, dataset.interactions, arrays, given.leak_users, given.leak_rounds)
        rows += [[name, score, *(f"{auc:.3f}" for auc in aucs)] for score, aucs in found.items()]
    return table(["setting", "score", "server, one round", "server, all rounds", "public"], rows, (0, 1))


def outcome_table(outcomes: Grid) -> str:
    """Return HR@10, its difference from the clean run of the first defence in points, and ER@10."""
    clean = _mean(next(iter(outcomes.values())), "hit_rate")
    rows = []
    for cell, found in outcomes.items():
        failed = [outcome.error for outcome in found if outcome.error]
        rate, shown = _mean(found, "hit_rate"), _mean(found, "exposure")
        figures = [f"{rate:.4f}", f"{100 * (rate - clean):+.1f}", f"{shown:.4f}"]
        rows.append([*cell, *([f"run failed: {failed[0]}", "", ""] if failed else figures)])
    return table(["defence", "attack", "HR@10", "points from clean", "ER@10"], rows, (0, 1))


def draw(outcomes: Grid, path: Path) -> None:
    """Draw HR@10 for every attack and ER@10 for every promotion, a bar for each defence; no bar where none was run."""
    defences, attacks = (list(dict.fromkeys(names)) for names in zip(*outcomes, strict=True))
    figure = Figure(figsize=(14, 5.5), layout="constrained")
    rates, exposures = figure.subplots(1, 2, width_ratios=[3, 1.4])
    promotions = [name for name in attacks if "promotion" in name]
    for axes, groups, name in ((rates, attacks, "hit_rate"), (exposures, promotions, "exposure")):
        bars(axes, groups, {d: [_mean(outcomes.get((d, attack), ()), name) for attack in groups] for d in defences})
    rates.axhline(_mean(outcomes[defences[0], "none"], "hit_rate"), color="grey", linewidth=0.8, linestyle="--")
    rates.set_ylabel("HR@10, test")
    exposures.set_ylabel("ER@10 of the promoted item")
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)


def _mean(outcomes: Sequence[Outcome], name: str) -> float:
    """Return the mean over seeds; not a number, which is drawn as no bar, where there was no run."""
    return float(np.mean([getattr(outcome, name) for outcome in outcomes])) if outcomes else float("nan")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
