"""The picture of the quality benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.quality_tables import Floats, gain


def draw(rows: Mapping[str, Sequence[Floats]], slices: Mapping[str, NDArray[np.bool_]], title: str, path: Path) -> None:
    """Draw NDCG@10 of every row over all users, with its spread over seeds, and of every row in each slice."""
    names = list(rows)
    colours = colormaps["tab20"](np.arange(len(names)) % 20)
    figure = Figure(figsize=(14, 0.5 + 0.45 * max(len(names), 6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    figures = [[float(gain(ranks).mean()) for ranks in rows[name]] for name in names]
    places = np.arange(len(names))[::-1]
    left.barh(places, [np.mean(each) for each in figures], xerr=[np.std(each) for each in figures], color=colours)
    left.set_yticks(places, names, fontsize="small")
    left.set_xlabel(f"NDCG@10, {title}, test")
    width = 0.8 / len(names)
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        means = [np.mean([gain(ranks)[members].mean() for ranks in rows[name]]) for members in slices.values()]
        right.bar(np.arange(len(slices)) + (place + 0.5) * width - 0.4, means, width, color=colour)
    right.set_xticks(np.arange(len(slices)), list(slices), rotation=25, ha="right", fontsize="small")
    right.set_ylabel("NDCG@10")
    figure.savefig(path, dpi=110)
