"""Memory of a process and of all that it has started, looked at twice a second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Look:
    """when: Unix time; driver, tree: bytes of the process itself, and together with its descendants."""

    when: float
    driver: int
    tree: int


@dataclass
class MemoryWatch:
    """Looks at the tree of a process. ``family``: every descendant that was ever seen."""

    process: psutil.Process
    looks: list[Look] = field(default_factory=list)
    family: set[psutil.Process] = field(default_factory=set)

    def look(self) -> None:
        """Take down what the tree takes now; a process that has just ended counts nothing."""
        try:
            children = self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self.family.update(children)
        driver = proportional_bytes(self.process.pid)
        self.looks.append(Look(time.time(), driver, driver + sum(proportional_bytes(c.pid) for c in children)))

    def end_family(self) -> None:
        """End the descendants that have outlived the process."""
        left = [process for process in self.family if process.is_running()]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)


def proportional_bytes(pid: int) -> int:
    """Return a process's share of its memory: a page that n processes map counts 1/n for each (PSS).

    Where the system does not tell, all that is resident; 0 if the process is gone.
    """
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def peaks(looks: Sequence[Look], begun: float, ended: float) -> tuple[int, int]:
    """Return the most that driver and tree took between two times, 0 where nobody looked."""
    within = [look for look in looks if begun <= look.when <= ended]
    return max((look.driver for look in within), default=0), max((look.tree for look in within), default=0)
