"""Figures of ranks: means over seeds, paired tests over users, slices of the users, and their picture.

A row of a table is one array of ranks ``[users]`` for each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import erfc, sqrt
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.runs import Ranks
from benchmarks.tables import bars
from data.dataset import Dataset
from data.sampling import held_out, training_part
from fedmoe_server.report.report import table

Rows = Mapping[str, Sequence[Ranks]]
Slices = Mapping[str, NDArray[np.bool_]]
Metric = Callable[[Ranks], Ranks]
FEWEST = 30  # users of a paired test


def hit_rate(ranks: Ranks, cutoff: int = 10) -> Ranks:
    """Return 1 where the rank is within the cutoff, else 0."""
    return (ranks <= cutoff).astype(np.float64)


def gain(ranks: Ranks, cutoff: int = 10) -> Ranks:
    """Return each user's NDCG at the cutoff: 1 / log2(1 + rank) within it, else 0."""
    return np.where(ranks <= cutoff, 1.0 / np.log2(1.0 + ranks), 0.0)


def paired_p(first: Ranks, second: Ranks) -> float:
    """Return the two-sided p of a paired t test over users (normal approximation: there are hundreds of them)."""
    differences = first - second
    spread = differences.std(ddof=1)
    if spread == 0:
        return 1.0
    return erfc(abs(differences.mean()) / (spread / sqrt(len(differences))) / sqrt(2))


def main_table(rows: Rows, sampled: Rows, baseline: str) -> str:
    """Return HR@10 and NDCG@10 in full ranking and among 1 + 100, and a test of NDCG@10 against one of the rows."""
    base = _of_users(gain, rows[baseline])
    lines = []
    for name, seeds in rows.items():
        own = _of_users(gain, seeds)
        against = f"{own.mean() / base.mean() - 1:+.1%}" if name != baseline and base.any() else ""
        p = f"{paired_p(own, base):.3f}" if name != baseline else ""
        full, few = (
            [_over_seeds(metric, found) for metric in (hit_rate, gain)] for found in (seeds, sampled.get(name))
        )
        lines.append([name, *full, against, p, *few])
    return table(["test", "HR@10", "NDCG@10", f"against {baseline}", "p", "HR@10, 1+100", "NDCG@10, 1+100"], lines)


def comparison_table(rows: Rows, validation: Rows, pairs: Sequence[tuple[str, str]], slices: Slices) -> str:
    """Return ratios, one row over another: see ``compared``; empty where no pair was run or no test item is rare.

    validation: ranks of the validation item.
    """
    rare = [members for name, members in slices.items() if name.startswith("tail")]
    lines = []
    for pair in pairs if rare else ():
        if all(name in rows for name in pair):
            both = [np.mean([gain(r).mean() for r in validation[name]]) for name in pair if name in validation]
            tails = [np.mean([hit_rate(r, 50)[rare[0]].mean() for r in rows[name]]) for name in pair]
            cells = compared(*(rows[name] for name in pair))
            lines.append([*pair, *cells, _ratio(*both) if len(both) == 2 else "", _ratio(*tails)])
    head = ["this", "over this", "NDCG@10, test", "p", "rank, test", "p", "NDCG@10, validation", "HR@50, tail items"]
    return table(head, lines, (0, 1)) if lines else ""


def compared(first: Sequence[Ranks], second: Sequence[Ranks]) -> list[str]:
    """Return what one row has over another: ratio and p of NDCG@10, ratio and p of the geometric mean of the rank.

    The rank also shows what happens beyond the first ten; below 1 is better. p: paired over users, each user's mean
    over the seeds; none of few users, or where no ratio can be told.
    """
    gains, base_gains = (_of_users(gain, seeds) for seeds in (first, second))
    logs, base_logs = (_of_users(np.log, seeds) for seeds in (first, second))
    enough = len(logs) >= FEWEST
    return [
        _ratio(gains.mean(), base_gains.mean()),
        f"{paired_p(gains, base_gains):.3f}" if enough and base_gains.any() else "",
        f"{np.exp(np.mean(logs - base_logs)):.3f}",
        f"{paired_p(logs, base_logs):.3f}" if enough else "",
    ]


def slices_of(dataset: Dataset) -> dict[str, NDArray[np.bool_]]:
    """Return which users belong to each slice: by history length, the test item's popularity, and its modalities."""
    histories = [dataset.interactions.history(user) for user in range(dataset.interactions.num_users)]
    trained = [training_part(history) for history in histories]
    lengths = np.array([len(items) for items in trained])
    targets = np.array([held_out(history, "test")[1] for history in histories])
    popularity = np.bincount(np.concatenate(trained), minlength=dataset.interactions.num_items + 1)[targets]
    short, long = np.quantile(lengths, [1 / 3, 2 / 3])
    found = {
        f"history up to {short:.0f}": lengths <= short,
        f"history {short:.0f} to {long:.0f}": (lengths > short) & (lengths <= long),
        f"history above {long:.0f}": lengths > long,
        "head item (100 or more)": popularity >= 100,
        "middle item (20 to 99)": (popularity >= 20) & (popularity < 100),
        "tail item (fewer than 20)": popularity < 20,
    }
    for name, features in dataset.features.items():
        if not features.present[targets].all():
            found[f"item without {name}"] = ~np.asarray(features.present[targets])
    return {name: members for name, members in found.items() if members.any()}


def slice_table(rows: Rows, slices: Slices) -> str:
    """Return NDCG@10, and for tail items HR@50, in each slice."""
    columns = [(f"{name}, NDCG@10", members, gain) for name, members in slices.items()]
    tails = [(f"{name}, HR@50", members, _in_first_50) for name, members in slices.items() if name.startswith("tail")]
    lines = []
    for row, seeds in rows.items():
        cells = [np.mean([metric(ranks)[members].mean() for ranks in seeds]) for _, members, metric in columns + tails]
        lines.append([row, *(f"{cell:.4f}" for cell in cells)])
    return table(["test", *(f"{name} (n={members.sum()})" for name, members, _ in columns + tails)], lines)


def draw(rows: Rows, slices: Slices, title: str, path: Path) -> None:
    """Draw NDCG@10 of every row over all users, with its spread over seeds, and of every row in each slice."""
    colours = colormaps["tab20"](np.arange(len(rows)) % 20)
    figure = Figure(figsize=(14, 0.5 + 0.45 * max(len(rows), 6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    found = [[float(gain(ranks).mean()) for ranks in seeds] for seeds in rows.values()]
    places = np.arange(len(rows))[::-1]
    left.barh(places, [np.mean(each) for each in found], xerr=[np.std(each) for each in found], color=colours)
    left.set_yticks(places, list(rows), fontsize="small")
    left.set_xlabel(f"NDCG@10, {title}, test")
    means = {name: _of_users(gain, seeds) for name, seeds in rows.items()}
    heights = {name: [float(mean[members].mean()) for members in slices.values()] for name, mean in means.items()}
    bars(right, list(slices), heights, colours)
    right.set_ylabel("NDCG@10")
    figure.savefig(path, dpi=110)


def _of_users(metric: Metric, seeds: Sequence[Ranks]) -> Ranks:
    """Return each user's mean over the seeds."""
    means: Ranks = np.mean([metric(ranks) for ranks in seeds], axis=0)
    return means


def _over_seeds(metric: Metric, seeds: Sequence[Ranks] | None) -> str:
    """Return the mean over users and seeds, and the standard deviation over several seeds."""
    values = [metric(ranks).mean() for ranks in seeds or ()]
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}" if values else ""


def _ratio(own: np.floating, base: np.floating) -> str:
    return f"{own / base:.3f}" if base > 0 else ""


def _in_first_50(ranks: Ranks) -> Ranks:
    return hit_rate(ranks, 50)
