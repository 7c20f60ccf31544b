"""What a measured process is given, and what it reports: files that its command line names."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from fedmoe.loading import settings_from
from fedmoe.settings import Settings


def given_plan() -> tuple[Settings, int, list[list[int]]]:
    """Return the settings, the number of rounds and the cohorts of the plan that this process is given."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return settings_from(plan["settings"]), plan["rounds"], plan["cohorts"]


class Report:
    """When the process was ready, everything imported, and each of its rounds, the cold one first; Unix times in s."""

    def __init__(self) -> None:
        self.ready = time.time()
        self.rounds: list[tuple[float, float, int, int]] = []

    def add(self, begun: float, ended: float, bytes_down: int = 0, bytes_up: int = 0) -> None:
        """Add a round; the bytes are those of all its messages, 0 where none travel."""
        self.rounds.append((begun, ended, bytes_down, bytes_up))

    def write(self) -> None:
        """Write all for the process that has started this one."""
        Path(sys.argv[2]).write_text(json.dumps(vars(self)), encoding="utf-8")
