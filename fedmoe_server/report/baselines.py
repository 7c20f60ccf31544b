"""What a run is shown beside: popularity, and the same model trained centrally."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe_server.report.run_folder import BASELINES, RESULT
from fedmoe_server.report.tracking import write_text

Splits = Mapping[str, Mapping[str, float]]
"""For ``validation`` and ``test``, the means over all users by name, as ``hr@10``."""


def add_baseline(run_dir: Path, name: str, metrics: Splits) -> None:
    """Add or replace a baseline in the run folder."""
    write_text(run_dir / BASELINES, json.dumps({**baselines_of(run_dir), name: metrics}, indent=2) + "\n")


def baselines_of(run_dir: Path) -> dict[str, Splits]:
    """Return the baselines in a run folder by name; raises FedMoEError if the file is damaged."""
    path = run_dir / BASELINES
    try:
        known: dict[str, Splits] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FedMoEError(f"{path} cannot be read ({error}): delete it, it is made again") from error
    return known


def federated_metrics(run_dir: Path) -> dict[str, Splits]:
    """Return a completed run's own figures, with the server's model alone and with the private parameters."""
    path = run_dir / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        splits = {split: result[split] for split in ("validation", "test")}
    except (OSError, ValueError, KeyError) as error:
        raise FedMoEError(f"{path} holds no result ({error}): name the folder of a completed run") from error
    return {
        f"federated, {kind}": {split: metrics[kind] for split, metrics in splits.items()}
        for kind in ("global", "personalised")
    }


def comparison(run_dir: Path) -> str:
    """Return, as a table of text, HR@10 and NDCG@10 of a completed run and its baselines."""
    rows = {**baselines_of(run_dir), **federated_metrics(run_dir)}
    columns = [(split, metric) for split in ("validation", "test") for metric in ("hr@10", "ndcg@10")]
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{split} {metric.upper()}".rjust(20) for split, metric in columns)]
    for name, splits in rows.items():
        lines.append(name.ljust(width) + "".join(f"{splits[split][metric]:.4f}".rjust(20) for split, metric in columns))
    return "\n".join(lines)
