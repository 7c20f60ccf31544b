"""Tables and the picture of the attack benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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
    """Draw HR@10 for every attack and ER@10 for the promotion, a bar for each defence."""
    if not outcomes:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    defences = list(dict.fromkeys(defence for defence, _ in outcomes))
    attacks = list(dict.fromkeys(attack for _, attack in outcomes))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.5), width_ratios=[3, 1])
    width = 0.8 / len(defences)
    for place, defence in enumerate(defences):
        rates = [_mean(outcomes.get((defence, attack), []), "hit_rate") for attack in attacks]
        left.bar(np.arange(len(attacks)) + (place + 0.5) * width - 0.4, rates, width, label=defence)
        promoted = "promotion" if "promotion" in attacks else attacks[-1]
        right.bar(place, _mean(outcomes[defence, promoted], "exposure"))
    left.axhline(_mean(outcomes[defences[0], "none"], "hit_rate"), color="grey", linewidth=0.8, linestyle="--")
    left.set_xticks(np.arange(len(attacks)), attacks, rotation=25, ha="right")
    left.set_ylabel("HR@10, test")
    left.legend(fontsize="small", ncols=2)
    right.set_xticks(np.arange(len(defences)), defences, rotation=40, ha="right")
    right.set_ylabel("ER@10 of the promoted item")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _mean(outcomes: Sequence[Outcome], name: str) -> float:
    """Return the mean over seeds; not a number, which is drawn as no bar, where there was no run."""
    return float(np.mean([getattr(outcome, name) for outcome in outcomes])) if outcomes else float("nan")
