"""Several runs that differ in some settings, side by side in one table and one picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from fedmoe.settings import Settings


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


def write_summary(folder: Path, name: str, folders: Mapping[str, Path], kind: str = "sweep") -> None:
    """Write ``KIND.md``, the table of the runs that are done, and a picture. folders: run folders by label."""
    # Flower and Matplotlib take a while to import: not for sim.py --help.
    from fedmoe.files import write_file
    from fedmoe_server.report.plots import draw_sweep
    from fedmoe_server.report.progress import number
    from fedmoe_server.report.report import table
    from fedmoe_server.report.run_folder import read_run

    runs = {label: read_run(path) for label, path in folders.items()}
    titles = ["", "rounds", "best round", "validation NDCG@10", "test HR@10", "test NDCG@10"]
    rows = []
    for label, run in runs.items():
        validation, test = run.result.validation["personalised"], run.result.test["personalised"]
        metrics = [validation["ndcg@10"], test["hr@10"], test["ndcg@10"], run.result.test["global"]["ndcg@10"]]
        cells = [number(value, 4) for value in metrics]
        rounds = [str(run.result.rounds), str(run.result.best_round)]
        rows.append([f"[{label}]({run.folder.name}/report.md)", *rounds, *cells])
    draw_sweep(runs, folder / f"{kind}.png")
    summary = table([*titles, "test NDCG@10, server's model alone"], rows)
    picture = f"![Test NDCG@10, validation NDCG@10 and the gate over the rounds]({kind}.png)"
    write_file(folder / f"{kind}.md", f"# {name}\n\n{summary}\n\n{picture}\n".encode())
