"""Tables and the picture of the attack benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.attack_leaks import Leak
from benchmarks.attack_runs import Outcome

Grid = dict[tuple[str, str], list[Outcome]]
"""(defence, attack) -> one outcome a seed; each defence has the attack "none"."""


def outcome_table(outcomes: Grid) -> str:
    """Return HR@10, its difference from the clean run of the defaults in points, ER@10 and refused replies."""
    if not outcomes:
        return ""
    lines = [
        "## Damage and defence",
        "HR@10 on test of the server's model over all users; ER@10: share of the honest users who never met the "
        "promoted item and have it in their top 10. Means over seeds.",
        "| defence | attack | HR@10 | points from clean | ER@10 | refused replies |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    first = next(iter(outcomes))[0]
    clean = _mean(outcomes[first, "none"], "hit_rate")
    rows = []
    for (defence, attack), found in outcomes.items():
        failed = [outcome.error for outcome in found if outcome.error]
        if failed:
            rows.append(f"| {defence} | {attack} | run failed: {failed[0].replace('|', '/')} |  |  |  |")
            continue
        rate = _mean(found, "hit_rate")
        rows.append(
            f"| {defence} | {attack} | {rate:.4f} | {100 * (rate - clean):+.1f} | {_mean(found, 'exposure'):.4f} "
            f"| {_mean(found, 'refused'):.0f} |"
        )
    return "\n\n".join([*lines[:2], "\n".join([lines[2], *rows])])


def budget_table(budgets: Mapping[float, Sequence[Outcome]]) -> str:
    """Return epsilon against HR@10."""
    if not budgets:
        return ""
    rows = [f"| {epsilon:g} | {_mean(found, 'hit_rate'):.4f} |" for epsilon, found in budgets.items()]
    return "\n".join(["## Epsilon against HR@10", "", "| epsilon | HR@10 |", "| ---: | ---: |", *rows])


def leak_table(leaks: Mapping[str, Leak]) -> str:
    """Return the AUCs, a line for each setting and score."""
    if not leaks:
        return ""
    lines = [
        "## What updates tell",
        "",
        'AUC of "did this user meet this item", mean over users; .5 is chance. Server: from a user\'s replies. Public: '
        "from the mean of the cohort, which is all that others ever see.",
        "",
        "| setting | score | server, one round | server, all rounds | public |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, found in leaks.items():
        lines += [
            f"| {name} | {score} | {found.server_once[score]:.3f} | {found.server_all[score]:.3f} "
            f"| {found.public[score]:.3f} |"
            for score in found.server_once
        ]
    return "\n".join(lines)


def draw(outcomes: Grid, path: Path) -> None:
    """Draw HR@10 for every attack and ER@10 for every promotion, a bar for each defence; no bar where none was run."""
    if not outcomes:
        return
    defences = list(dict.fromkeys(defence for defence, _ in outcomes))
    attacks = list(dict.fromkeys(attack for _, attack in outcomes))
    figure = Figure(figsize=(14, 5.5), layout="constrained")
    rates, exposures = figure.subplots(1, 2, width_ratios=[3, 1.4])
    _bars(rates, outcomes, defences, attacks, "hit_rate")
    rates.axhline(_mean(outcomes[defences[0], "none"], "hit_rate"), color="grey", linewidth=0.8, linestyle="--")
    rates.set_ylabel("HR@10, test")
    _bars(exposures, outcomes, defences, [name for name in attacks if "promotion" in name], "exposure")
    exposures.set_ylabel("ER@10 of the promoted item")
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)


def _bars(axes: Axes, outcomes: Grid, defences: Sequence[str], attacks: Sequence[str], figure: str) -> None:
    width = 0.8 / len(defences)
    for place, defence in enumerate(defences):
        heights = [_mean(outcomes.get((defence, attack), []), figure) for attack in attacks]
        axes.bar(np.arange(len(attacks)) + (place + 0.5) * width - 0.4, heights, width, label=defence)
    axes.set_xticks(np.arange(len(attacks)), attacks, rotation=25, ha="right")


def _mean(outcomes: Sequence[Outcome], name: str) -> float:
    """Return the mean over seeds; not a number, which is drawn as no bar, where there was no run."""
    return float(np.mean([getattr(outcome, name) for outcome in outcomes])) if outcomes else float("nan")
