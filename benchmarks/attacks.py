"""``python -m benchmarks.attacks [CONFIG] [key=value ...]``: what attacks do, and what defences do about it.

Runs the shortened default job for each attack and defence, and writes a page with tables and a picture: HR@10 on test
and the exposure ER@10 of a promoted cold item; epsilon against HR@10; and how well updates tell whom they come from.
Runs that are in the folder already are not done again, so that the page can be extended.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.attack_leaks import Leak, leak
from benchmarks.attack_plans import ATTACKS, DEFENCES, EPSILONS, PRIVATE, SHORT, attack_of, meets
from benchmarks.attack_runs import Outcome, changed, model_of, run
from benchmarks.attack_tables import Grid, budget_table, draw, leak_table, outcome_table
from data.registry import load_dataset
from fedmoe.errors import FedMoEError, nearest
from fedmoe.loading import load_settings
from fedmoe.settings import Settings
from model.build import arrays_of


def main(words: Sequence[str]) -> int:
    """Run what is missing and write the page; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__.split("\n\n")[0])
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), help="names of attacks; default: all")
    parser.add_argument("--defences", nargs="*", default=list(DEFENCES), help="names of defences; default: all")
    parser.add_argument("--epsilons", type=float, nargs="*", default=list(EPSILONS), help="budgets to compare")
    parser.add_argument("--leak_users", type=int, default=50, help="users whose updates are looked into; 0: none")
    parser.add_argument("--leak_rounds", type=int, default=5, help="rounds in which the server watches them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--folder", type=Path, default=Path("runs/attacks"), help="where runs and the page are kept")
    given = parser.parse_args(words)
    try:
        _check(given.attacks, ATTACKS, "attack")
        _check(given.defences, DEFENCES, "defence")
        base = _shortened(given.settings)
        folder = given.folder / base.name
        outcomes: Grid = {}
        for defence in given.defences:
            for attack in dict.fromkeys(["none", *given.attacks]):
                if meets(defence, attack):
                    outcomes[defence, attack] = [_cell(base, defence, attack, seed, folder) for seed in given.seeds]
        budgets = {
            epsilon: [_budget(base, epsilon, seed, folder) for seed in given.seeds] for epsilon in given.epsilons
        }
        leaks = _leaks(base, given.seeds[0], folder, given.leak_users, given.leak_rounds) if given.leak_users else {}
        draw(outcomes, folder / "attacks.png")
        parts = [
            f"# {base.name}: attacks and leaks",
            f"    python -m benchmarks.attacks {' '.join(words)}",
            outcome_table(outcomes),
            "![damage and defence](attacks.png)" if outcomes else "",
            budget_table(budgets),
            leak_table(leaks),
        ]
        page = folder / "attacks.md"
        page.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
        print("\n\n".join(part for part in parts[2:] if part))
        print(f"page: {page}")
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check(names: Sequence[str], known: Mapping[str, object], what: str) -> None:
    for name in names:
        if name not in known:
            raise FedMoEError(f"no {what} '{name}'{nearest(name, known)} They are: {', '.join(known)}")


def _shortened(words: Sequence[str]) -> Settings:
    """Return the default job in fewer rounds, the words of the command line on top."""
    federation = [f"{key}={value}" for key, value in SHORT.items() if not isinstance(value, dict)]
    nested = [f"{key}.{k}={v}" for key, value in SHORT.items() if isinstance(value, dict) for k, v in value.items()]
    config = list(words[:1]) if words and "=" not in words[0] and not words[0].startswith("-") else []
    settings, _ = load_settings([*config, *federation, *nested, *words[len(config) :]])
    return settings


def _cell(base: Settings, defence: str, attack: str, seed: int, folder: Path) -> Outcome:
    print(f"seed {seed}: {attack} against {defence}", flush=True)
    changes = DEFENCES[defence]
    if any(key.startswith("privacy.") for key in changes):
        changes = {**PRIVATE, **changes}
    settings = changed(base, changes, seed, folder / "runs", f"{attack}-{defence}-{seed}")
    interactions = load_dataset(settings.data, settings.seed).interactions
    return run(settings, attack_of(ATTACKS[attack], interactions, seed))


def _budget(base: Settings, epsilon: float, seed: int, folder: Path) -> Outcome:
    print(f"seed {seed}: epsilon {epsilon:g}", flush=True)
    changes = {**PRIVATE, "privacy.epsilon": epsilon}
    settings = changed(base, changes, seed, folder / "runs", f"epsilon-{epsilon:g}-{seed}")
    interactions = load_dataset(settings.data, settings.seed).interactions
    return run(settings, attack_of(ATTACKS["none"], interactions, seed))


def _leaks(base: Settings, seed: int, folder: Path, users: int, rounds: int) -> dict[str, Leak]:
    """Return what clients leak that train on the clean model."""
    clean = changed(base, {}, seed, folder / "runs", f"none-defaults-{seed}")
    dataset = load_dataset(clean.data, clean.seed)
    run(clean, attack_of(ATTACKS["none"], dataset.interactions, seed))
    arrays = arrays_of(model_of(clean, dataset, clean.save_dir / clean.name).model)
    variants = {
        "defaults": {},
        "privacy, epsilon 8": {**PRIVATE, "privacy.epsilon": 8.0},
        "privacy, epsilon 8, noise of the clients": {**PRIVATE, "privacy.epsilon": 8.0, "privacy.side": "client"},
    }
    found = {}
    for name, changes in variants.items():
        print(f"leak: {name}", flush=True)
        settings = changed(base, changes, seed, folder / "runs", "leak")
        found[name] = leak(settings, dataset.interactions, arrays, users, rounds)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
