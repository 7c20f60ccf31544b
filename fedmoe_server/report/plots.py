"""The pictures of a report, drawn from the records of ``metrics.jsonl``. No display and no global state is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmoe_server.rounds.record import GLOBAL_PREFIX

Records = Sequence[Mapping[str, Any]]
Baselines = Mapping[str, Mapping[str, Mapping[str, float]]]

# Colours that people with a colour-vision deficiency can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
BASELINE_STYLE = {"popularity": (GREY, "--"), "central": (GREEN, "-.")}
BASELINE_LABEL = {"popularity": "popularity", "central": "centralised training"}


def draw_loss(records: Records, path: Path) -> bool:
    """Draw the training loss over the rounds; return whether there was anything to draw."""
    rounds, losses = _series(records, "train", "loss")
    if not rounds:
        return False
    figure, (axes,) = _figure(1)
    _line(axes, rounds, losses, BLUE, None)
    _mark_warmup(axes, records)
    _finish(axes, "Training loss", "mean loss of the round's clients (nats)", records)
    _save(figure, path)
    return True


def draw_ranking(records: Records, baselines: Baselines, best_round: int | None, path: Path) -> bool:
    """Draw HR@10 and NDCG@10 on validation over the rounds, with the baselines as level lines."""
    if not _series(records, "validation", "hr@10")[0]:
        return False
    figure, panels = _figure(2)
    for axes, key, title in zip(panels, ("hr@10", "ndcg@10"), ("HR@10", "NDCG@10"), strict=True):
        rounds, values = _series(records, "validation", key)
        _line(axes, rounds, values, BLUE, "with private parameters", marker="o")
        alone = _series(records, "validation", GLOBAL_PREFIX + key)
        _line(axes, *alone, ORANGE, "server's model alone", style="--", marker="s")
        if best_round in rounds:
            best = values[rounds.index(best_round)]
            axes.plot([best_round], [best], "*", color=VERMILION, markersize=13, label="best round")
        for name, splits in baselines.items():
            _level(axes, name, splits, key)
        _mark_warmup(axes, records)
        axes.set_ylim(bottom=0.0)
        _finish(axes, f"Validation {title}", f"{title} (mean over users, 0 to 1)", records)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    _save(figure, path)
    return True


def draw_gate(records: Records, path: Path) -> bool:
    """Draw the gate and the router's weights over the rounds."""
    gate_rounds, gate = _series(records, "train", "gate")
    router = [("router-visual", "visual expert", BLUE), ("router-semantic", "semantic expert", ORANGE)]
    if not gate_rounds and not any(_series(records, "train", key)[0] for key, _, _ in router):
        return False
    figure, (left, right) = _figure(2)
    _line(left, gate_rounds, gate, BLUE, None)
    _mark_warmup(left, records)
    _finish(left, "Gate", "gate g (mean of the round's clients)", records)
    for key, label, colour in router:
        rounds, weights = _series(records, "train", key)
        _line(right, rounds, weights, colour, label)
    _mark_warmup(right, records)
    right.set_ylim(0.0, 1.0)
    _finish(right, "Router", "mean weight of the expert (0 to 1)", records)
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False)
    _save(figure, path)
    return True


def _series(records: Records, part: str, key: str) -> tuple[list[int], list[float]]:
    """Return the rounds that have a value, and the values."""
    found = [(r["round"], r[part][key]) for r in records if r[part] and r[part].get(key) is not None]
    return [number for number, _ in found], [value for _, value in found]


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.6 * panels, 3.8), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _line(
    axes: Axes,
    rounds: list[int],
    values: list[float],
    colour: str,
    label: str | None,
    style: str = "-",
    marker: str | None = None,
) -> None:
    if rounds:
        # A single point is no line: without a marker it would be invisible.
        shown = marker if marker or len(rounds) > 1 else "o"
        axes.plot(rounds, values, style, color=colour, label=label, marker=shown, markersize=4, linewidth=1.6)


def _level(axes: Axes, name: str, splits: Mapping[str, Mapping[str, float]], key: str) -> None:
    """Draw a baseline: its validation value, or the test value (and say so) where there is no other."""
    split = "validation" if splits.get("validation", {}).get(key) is not None else "test"
    value = splits.get(split, {}).get(key)
    if value is not None:
        colour, style = BASELINE_STYLE.get(name, (VERMILION, ":"))
        axes.axhline(value, color=colour, linestyle=style, linewidth=1.3, label=_baseline_label(name, split))


def _baseline_label(name: str, split: str) -> str:
    return BASELINE_LABEL.get(name, name) + (" (on test)" if split == "test" else "")


def _mark_warmup(axes: Axes, records: Records) -> None:
    """Shade the warm-up rounds where there are both phases."""
    warmup = [record["round"] for record in records if record["phase"] == "warmup"]
    if warmup and len(warmup) < len(records):
        axes.axvspan(min(warmup) - 0.5, max(warmup) + 0.5, color=GREY, alpha=0.10, linewidth=0)
        where = axes.get_xaxis_transform()  # x in rounds, y in parts of the axes: just above them, clear of every line
        axes.text(min(warmup) - 0.5, 1.01, "warm-up", transform=where, va="bottom", color=GREY, fontsize="small")


def _finish(axes: Axes, title: str, unit: str, records: Records) -> None:
    axes.set_title(title)
    axes.set_xlabel("round")
    axes.set_ylabel(unit)
    axes.set_xlim(0.5, max(record["round"] for record in records) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
