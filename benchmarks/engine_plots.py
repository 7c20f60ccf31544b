"""Plots of the engine benchmark: what a client costs against the number of users, and against the cohort."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.engine_figures import Figure

Curves = Mapping[str, Mapping[int, Figure]]  # engine -> x -> milliseconds of a client


def draw(curves: Curves, x_label: str, path: Path) -> Path:
    """Draw a client's cost with the range of the repeats, write it to ``path`` and return that."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for engine, points in curves.items():
        xs = sorted(points)
        middle = [points[x].median for x in xs]
        below = [points[x].median - points[x].least for x in xs]
        above = [points[x].most - points[x].median for x in xs]
        axes.errorbar(xs, middle, yerr=[below, above], marker="o", capsize=3, label=engine)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel("milliseconds a client")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
