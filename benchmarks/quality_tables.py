"""Tables of the quality benchmark: means over seeds, paired tests over users, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erfc, sqrt

import numpy as np
from numpy.typing import NDArray

from data.registry import Dataset
from data.splits import held_out, training_part

Floats = NDArray[np.float64]
FEWEST = 30  # users of a paired test


def hit_rate(ranks: Floats, cutoff: int) -> Floats:
    """Return 1 where the rank is within the cutoff, else 0."""
    return (ranks <= cutoff).astype(np.float64)


def gain(ranks: Floats, cutoff: int = 10) -> Floats:
    """Return each user's NDCG at the cutoff: 1 / log2(1 + rank) within it, else 0."""
    return np.where(ranks <= cutoff, 1.0 / np.log2(1.0 + ranks), 0.0)


def paired_p(first: Floats, second: Floats) -> float:
    """Return the two-sided p of a paired t test over users (normal approximation: there are hundreds of them)."""
    differences = first - second
    spread = differences.std(ddof=1)
    if spread == 0:
        return 1.0
    return erfc(abs(differences.mean()) / (spread / sqrt(len(differences))) / sqrt(2))


def main_table(rows: Mapping[str, Sequence[Floats]], sampled: Mapping[str, Sequence[Floats]], baseline: str) -> str:
    """Return a Markdown table: HR@10 and NDCG@10 in full ranking and among 1 + 100, and the test against a row.

    rows, sampled: one array of ranks a seed, by the row's name. p: NDCG@10, each user's mean over the seeds.
    """
    lines = [
        f"| test | HR@10 | NDCG@10 | against {baseline} | p | HR@10, 1+100 | NDCG@10, 1+100 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    base = np.mean([gain(ranks) for ranks in rows[baseline]], axis=0)
    for name, seeds in rows.items():
        own = np.mean([gain(ranks) for ranks in seeds], axis=0)
        against = f"{own.mean() / base.mean() - 1:+.1%}" if name != baseline and base.any() else ""
        p = f"{paired_p(own, base):.3f}" if name != baseline else ""
        cells = [_spread([hit_rate(r, 10).mean() for r in seeds]), _spread([gain(r).mean() for r in seeds]), against, p]
        if name in sampled:
            cells += [_spread([f(r).mean() for r in sampled[name]]) for f in (lambda r: hit_rate(r, 10), gain)]
        else:
            cells += ["", ""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_table(
    rows: Mapping[str, Sequence[Floats]],
    validation: Mapping[str, Sequence[Floats]],
    pairs: Sequence[tuple[str, str]],
    tail: NDArray[np.bool_],
) -> str:
    """Return a Markdown table of ratios, one row over another.

    rows, validation: ranks of the test and the validation item, one array a seed; tail: the users whose test item is
    rare. p: of what stands before it, on test, paired over users, each user's mean over the seeds. rank: ratio of the
    geometric means over users, which also shows what happens beyond the first ten; below 1 is better.
    """
    lines = [
        "| this | over this | NDCG@10, test | p | rank, test | p | NDCG@10, validation | HR@50, tail items |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, other in pairs:
        if name not in rows or other not in rows:
            continue
        cells = compared(rows[name], rows[other])
        known = name in validation and other in validation
        means = [np.mean([gain(r).mean() for r in validation[row]]) for row in (name, other)] if known else []
        cells.append(_ratio(*means) if known else "")
        cells.append(_ratio(*(np.mean([hit_rate(r, 50)[tail].mean() for r in rows[row]]) for row in (name, other))))
        lines.append(f"| {name} | {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def compared(first: Sequence[Floats], second: Sequence[Floats]) -> list[str]:
    """Return what one row has over another, from the ranks of each seed: ratio and p of NDCG@10 and of the rank.

    Of few users, or where no ratio can be told, there is no p.
    """
    gains, base_gains = (np.mean([gain(ranks) for ranks in seeds], axis=0) for seeds in (first, second))
    logs, base_logs = (np.mean([np.log(ranks) for ranks in seeds], axis=0) for seeds in (first, second))
    enough = len(logs) >= FEWEST
    return [
        _ratio(gains.mean(), base_gains.mean()),
        f"{paired_p(gains, base_gains):.3f}" if enough and base_gains.any() else "",
        f"{np.exp(np.mean(logs - base_logs)):.3f}",
        f"{paired_p(logs, base_logs):.3f}" if enough else "",
    ]


def _ratio(own: np.floating, base: np.floating) -> str:
    return f"{own / base:.3f}" if base > 0 else ""


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.4f}"


def slices_of(dataset: Dataset) -> dict[str, NDArray[np.bool_]]:
    """Return which users belong to each slice: by history length, the test item's popularity, and its modalities."""
    interactions = dataset.interactions
    users = range(interactions.num_users)
    lengths = np.array([len(training_part(interactions.history(user))) for user in users])
    counts = np.bincount(
        np.concatenate([training_part(interactions.history(user)) for user in users]),
        minlength=interactions.num_items + 1,
    )
    targets = np.array([held_out(interactions.history(user), "test")[1] for user in users])
    popularity = counts[targets]
    short, long = np.quantile(lengths, [1 / 3, 2 / 3])
    found = {
        f"history up to {short:.0f}": lengths <= short,
        f"history {short:.0f} to {long:.0f}": (lengths > short) & (lengths <= long),
        f"history above {long:.0f}": lengths > long,
        "head item (100 or more)": popularity >= 100,
        "middle item (20 to 99)": (popularity >= 20) & (popularity < 100),
        "tail item (fewer than 20)": popularity < 20,
    }
    for name, features in (("a picture", dataset.visual), ("a text", dataset.text)):
        if features is not None and not features.present[targets].all():
            found[f"item without {name}"] = ~np.asarray(features.present[targets])
    return {name: members for name, members in found.items() if members.any()}


def slice_table(rows: Mapping[str, Sequence[Floats]], slices: Mapping[str, NDArray[np.bool_]]) -> str:
    """Return a Markdown table of NDCG@10, and for tail items HR@50, in each slice."""
    columns = [(name, members, "NDCG@10") for name, members in slices.items()]
    columns += [(name, members, "HR@50") for name, members in slices.items() if name.startswith("tail")]
    head = [f"{name}, {metric} (n={members.sum()})" for name, members, metric in columns]
    lines = ["| test | " + " | ".join(head) + " |", "|---|" + "---:|" * len(columns)]
    for row, seeds in rows.items():
        cells = [
            np.mean([(gain(r) if metric == "NDCG@10" else hit_rate(r, 50))[members].mean() for r in seeds])
            for _, members, metric in columns
        ]
        lines.append(f"| {row} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |")
    return "\n".join(lines)
