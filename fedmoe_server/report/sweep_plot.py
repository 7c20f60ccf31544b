"""The picture of a sweep: what each point reaches, and how it got there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmoe_server.report.plots import BLUE, ORANGE, Records

SMOOTHED = 20  # rounds: the gate is the mean of a round's clients, who differ


def draw_sweep(histories: Mapping[str, Records], tests: Mapping[str, Any], path: Path) -> None:
    """Draw test NDCG@10 as bars, validation NDCG@10 and the gate as lines over the rounds.

    histories: records of ``metrics.jsonl`` by label; tests: ``personalised`` and ``global`` test metrics by label.
    """
    figure = Figure(figsize=(15.5, 4.2), layout="constrained")
    bars, validation, gate = figure.subplots(1, 3)
    _draw_bars(bars, tests)
    colours = colormaps["viridis"]
    for place, (label, records) in enumerate(histories.items()):
        colour = colours(0.9 * place / max(len(histories) - 1, 1))
        evaluated = [(r["round"], r["validation"]["ndcg@10"]) for r in records if r["validation"]]
        validation.plot(*zip(*evaluated, strict=True), marker="o", markersize=3, color=colour, label=label)
        gates = [(r["round"], r["train"]["gate"]) for r in records if "gate" in r["train"]]
        if gates:
            rounds, values = zip(*gates, strict=True)
            gate.plot(rounds, _smoothed(values), color=colour, label=label)
    _finish(validation, "Validation NDCG@10", "round", "NDCG@10 (mean over users, 0 to 1)")
    _finish(gate, f"Gate, mean of {SMOOTHED} rounds", "round", "gate g")
    handles, labels = validation.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    figure.savefig(path, dpi=110)


def _draw_bars(axes: Axes, tests: Mapping[str, Any]) -> None:
    places = range(len(tests))
    for offset, kind, colour, label in (
        (-0.2, "personalised", BLUE, "with private parameters"),
        (0.2, "global", ORANGE, "server's model alone"),
    ):
        values = [metrics[kind]["ndcg@10"] for metrics in tests.values()]
        axes.bar([place + offset for place in places], values, width=0.38, color=colour, label=label)
    axes.set_xticks(list(places), list(tests), rotation=25, ha="right", fontsize="small")
    axes.legend(frameon=False, loc="lower right", fontsize="small")
    _finish(axes, "Test NDCG@10", "", "NDCG@10 (mean over users, 0 to 1)")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return at each place the mean of the latest values."""
    return [fmean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]


def _finish(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
