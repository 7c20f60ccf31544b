"""What a process of the engine benchmark reports: when it was ready, and each round it has done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedmoe.loading import settings_from
from fedmoe.settings import Settings


@dataclass(frozen=True)
class Round:
    """A round: its phase, clients, times (Unix, s), and payload bytes of all its messages (0: none travel)."""

    phase: int
    clients: int
    begun: float
    ended: float
    bytes_down: int = 0
    bytes_up: int = 0

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.ended - self.begun


@dataclass
class Report:
    """One process's report.

    Attributes:
        ready: Unix time at which everything was imported and the engine's start began.
        rounds: in their order; the first is the cold one.
        notes: what else is worth knowing, by name.
    """

    ready: float = field(default_factory=time.time)
    rounds: list[Round] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it for the process that has started this one."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what ``write`` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(found["ready"], [Round(**entry) for entry in found["rounds"]], found["notes"])


def phase_of_rounds(phases: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Yield the phase and the clients of each round: the first phase has the cold round on top of its warm ones."""
    for phase, (clients, warm) in enumerate(phases):
        for _ in range(warm + (phase == 0)):
            yield phase, clients


def plan_and_place(words: Sequence[str]) -> tuple[Settings, list[list[int]], list[list[int]], Path]:
    """Return a plan's settings, phases and cohorts, and the report's place: the two arguments of such a process."""
    plan = json.loads(Path(words[0]).read_text(encoding="utf-8"))
    return settings_from(plan["settings"]), plan["phases"], plan["cohorts"], Path(words[1])
