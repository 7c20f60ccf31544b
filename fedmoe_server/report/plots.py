"""The pictures of a report and of a sweep, drawn from rounds' records. No display and no global state is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmoe_server.report.diagnosis import Records, experts_seen, values_of
from fedmoe_server.report.run_folder import Run, Splits
from fedmoe_server.rounds.record import GLOBAL_PREFIX

# Colours that people with a colour-vision deficiency can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
EXPERT_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9")
BASELINE_STYLE = {"popularity": (GREY, "--")}
SMOOTHED = 20  # rounds of a sweep's gate: it is the mean of a round's clients, who differ


def draw_loss(records: Records, path: Path) -> bool:
    """Draw the training loss over the rounds; return whether there was anything to draw."""
    rounds, losses = values_of(records, "loss")
    if not rounds:
        return False
    figure, (axes,) = _figure(1)
    _line(axes, rounds, losses, BLUE, None)
    _finish(axes, "Training loss", "mean loss of the round's clients (nats)", records)
    figure.savefig(path, dpi=120)
    return True


def draw_ranking(records: Records, baselines: Mapping[str, Splits], best_round: int | None, path: Path) -> bool:
    """Draw HR@10 and NDCG@10 on validation over the rounds, with the baselines as level lines."""
    if not values_of(records, "hr@10", "validation")[0]:
        return False
    figure, panels = _figure(2)
    _ranking_panels(figure, panels, records, baselines, best_round)
    figure.savefig(path, dpi=120)
    return True


def overview(run: Run) -> Figure:
    """Return the loss, HR@10 and NDCG@10 of a run side by side; what has not been measured stays empty."""
    figure, (loss, *panels) = _figure(3)
    if run.records:
        _line(loss, *values_of(run.records, "loss"), BLUE, None)
        _finish(loss, "Training loss", "mean loss of the round's clients (nats)", run.records)
        _ranking_panels(figure, panels, run.records, run.baselines, run.result.best_round)
    return figure


def _ranking_panels(
    figure: Figure, panels: Sequence[Axes], records: Records, baselines: Mapping[str, Splits], best_round: int | None
) -> None:
    for axes, key, title in zip(panels, ("hr@10", "ndcg@10"), ("HR@10", "NDCG@10"), strict=True):
        rounds, values = values_of(records, key, "validation")
        _line(axes, rounds, values, BLUE, "with private parameters", marker="o")
        alone = values_of(records, GLOBAL_PREFIX + key, "validation")
        _line(axes, *alone, ORANGE, "server's model alone", style="--", marker="s")
        if best_round in rounds:
            best = values[rounds.index(best_round)]
            axes.plot([best_round], [best], "*", color=VERMILION, markersize=13, label="best round")
        for name, splits in baselines.items():
            _level(axes, name, splits, key)
        axes.set_ylim(bottom=0.0)
        _finish(axes, f"Validation {title}", f"{title} (mean over users, 0 to 1)", records)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)


def draw_gate(records: Records, path: Path) -> bool:
    """Draw the gate and the router's weights over the rounds."""
    gate_rounds, gate = values_of(records, "gate")
    experts = experts_seen(records)
    if not gate_rounds and not experts:
        return False
    figure, (left, right) = _figure(2)
    _line(left, gate_rounds, gate, BLUE, None)
    _finish(left, "Gate", "gate g (mean of the round's clients)", records)
    for place, expert in enumerate(experts):
        colour = EXPERT_COLOURS[place % len(EXPERT_COLOURS)]
        _line(right, *values_of(records, f"router-{expert}"), colour, f"{expert} expert")
    right.set_ylim(0.0, 1.0)
    _finish(right, "Router", "mean weight of the expert (0 to 1)", records)
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return True


def draw_sweep(runs: Mapping[str, Run], path: Path) -> None:
    """Draw runs by label: test NDCG@10 as bars, validation NDCG@10 and the gate as lines over the rounds."""
    figure = Figure(figsize=(15.5, 4.2), layout="constrained")
    bars, validation, gate = figure.subplots(1, 3)
    _draw_bars(bars, runs)
    colours = colormaps["viridis"]
    for place, (label, run) in enumerate(runs.items()):
        colour = colours(0.9 * place / max(len(runs) - 1, 1))
        evaluated = values_of(run.records, "ndcg@10", "validation")
        validation.plot(*evaluated, marker="o", markersize=3, color=colour, label=label)
        rounds, gates = values_of(run.records, "gate")
        gate.plot(rounds, _smoothed(gates), color=colour, label=label)
    _style(validation, "Validation NDCG@10", "round", "NDCG@10 (mean over users, 0 to 1)")
    _style(gate, f"Gate, mean of {SMOOTHED} rounds", "round", "gate g")
    handles, labels = validation.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    figure.savefig(path, dpi=110)


def _draw_bars(axes: Axes, runs: Mapping[str, Run]) -> None:
    places = range(len(runs))
    for offset, kind, colour, label in (
        (-0.2, "personalised", BLUE, "with private parameters"),
        (0.2, "global", ORANGE, "server's model alone"),
    ):
        values = [run.result.test[kind]["ndcg@10"] or 0.0 for run in runs.values()]
        axes.bar([place + offset for place in places], values, width=0.38, color=colour, label=label)
    axes.set_xticks(list(places), list(runs), rotation=25, ha="right", fontsize="small")
    axes.legend(frameon=False, loc="lower right", fontsize="small")
    _style(axes, "Test NDCG@10", "", "NDCG@10 (mean over users, 0 to 1)")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return at each place the mean of the latest values."""
    return [fmean(values[max(0, end - SMOOTHED) : end]) for end in range(1, len(values) + 1)]


class Picture(Figure):
    """A figure that a notebook shows, whatever backend Matplotlib has there."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png", dpi=90)
        return content.getvalue()


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Picture(figsize=(5.6 * panels, 3.8), layout="constrained")
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


def _level(axes: Axes, name: str, splits: Splits, key: str) -> None:
    """Draw a baseline: its validation value, or the test value (and say so) where there is no other."""
    split = "validation" if splits.get("validation", {}).get(key) is not None else "test"
    value = splits.get(split, {}).get(key)
    if value is not None:
        colour, style = BASELINE_STYLE.get(name, (VERMILION, ":"))
        where = " (on test)" if split == "test" else ""
        axes.axhline(value, color=colour, linestyle=style, linewidth=1.3, label=f"{name}{where}")


def _finish(axes: Axes, title: str, unit: str, records: Records) -> None:
    """Label the axes, and shade the warm-up rounds where there are both phases."""
    warmup = [record.round for record in records if record.phase == "warmup"]
    if warmup and len(warmup) < len(records):
        axes.axvspan(min(warmup) - 0.5, max(warmup) + 0.5, color=GREY, alpha=0.10, linewidth=0)
        where = axes.get_xaxis_transform()  # x in rounds, y in parts of the axes: just above them, clear of every line
        axes.text(min(warmup) - 0.5, 1.01, "warm-up", transform=where, va="bottom", color=GREY, fontsize="small")
    axes.set_xlim(0.5, max(record.round for record in records) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style(axes, title, "round", unit)


def _style(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
