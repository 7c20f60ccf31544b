"""What a run's report shows beside its own figures: popularity, and the same model trained centrally."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedmoe_server.run_folder import BASELINES
from fedmoe_server.tracking import write_text


def add_baseline(run_dir: Path, name: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Add or replace a baseline in the run folder.

    metrics: for ``validation`` and ``test``, the means over all users by name, as ``hr@10``.
    """
    path = run_dir / BASELINES
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_text(path, json.dumps({**known, name: metrics}, indent=2) + "\n")
