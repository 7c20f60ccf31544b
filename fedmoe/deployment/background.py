"""``up`` without ``--foreground``: the same command once more, as a process of its own, until it is ready."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedmoe.deployment.folder import Folder
from fedmoe.errors import FedMoEError

LAST_LINES = 12


def start_in_background(
    folder: Folder, module: str, words: Sequence[str], environment: Mapping[str, str], ready: Callable[[], bool]
) -> None:
    """Start ``python -m module words`` detached from this terminal and wait until ``ready()``.

    Its output goes to ``logs/supervisor.log``. Raises FedMoEError with its last lines if it ends before.
    """
    log = folder.logs / "supervisor.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    while not ready():
        if process.poll() is not None:
            raise FedMoEError(_why(log))
        time.sleep(0.2)


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """Return the last lines of a log file, "" if there is none."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return ""


def _why(log: Path) -> str:
    lines = last_lines(log)
    told = [line for line in lines.splitlines() if line.startswith("error: ")]
    return told[-1].removeprefix("error: ") if told else f"it ended at once; {log} says:\n{lines}"
