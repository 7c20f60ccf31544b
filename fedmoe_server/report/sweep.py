"""Several runs that differ in some settings, side by side in one table and one picture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fedmoe.settings import Settings

Metrics = Mapping[str, Mapping[str, Mapping[str, float]]]


def run_sweep(points: Mapping[str, Settings], simulate: Callable[[Settings], Path]) -> Path:
    """Run every point after the other, and write ``sweep.md`` and ``sweep.png`` beside their run folders.

    points: settings by label, with one name and one save_dir. Returns ``save_dir/<time>-<name>``. The table and the
    picture are written again after each point, so that a sweep that is stopped leaves what it has.
    """
    first = next(iter(points.values()))
    folder = first.save_dir / f"{datetime.now():%Y%m%d-%H%M%S}-{first.name}"
    runs: dict[str, Path] = {}
    for label, settings in points.items():
        print(f"{first.name}, point {len(runs) + 1} of {len(points)}: {label}")
        name = re.sub(r"[^\w.+-]+", "-", label).strip("-")
        runs[label] = simulate(settings.model_copy(update={"save_dir": folder, "name": name}))
        write_summary(folder, first.name, runs)
    print(f"sweep: {folder / 'sweep.md'}")
    return folder


def write_summary(folder: Path, name: str, runs: Mapping[str, Path]) -> None:
    """Write the table and the picture of the runs that are done. runs: run folders by label."""
    from fedmoe_server.report.sweep_plot import draw_sweep
    from fedmoe_server.report.tracking import write_text

    results: dict[str, Any] = {label: json.loads((run / "result.json").read_text()) for label, run in runs.items()}
    lines = [
        "| | best round | validation NDCG@10 | test HR@10 | test NDCG@10 | test NDCG@10, server's model alone |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for label, result in results.items():
        test, common = result["test"]["personalised"], result["test"]["global"]
        numbers = [result["validation"]["personalised"]["ndcg@10"], test["hr@10"], test["ndcg@10"], common["ndcg@10"]]
        cells = " | ".join(f"{number:.4f}" for number in numbers)
        lines.append(f"| [{label}]({runs[label].name}/report.md) | {result['best_round']} | {cells} |")
    histories = {label: _history(run) for label, run in runs.items()}
    draw_sweep(histories, {label: result["test"] for label, result in results.items()}, folder / "sweep.png")
    picture = "![Test NDCG@10, validation NDCG@10 and the gate over the rounds](sweep.png)"
    write_text(folder / "sweep.md", f"# {name}\n\n" + "\n".join(lines) + f"\n\n{picture}\n")


def _history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
