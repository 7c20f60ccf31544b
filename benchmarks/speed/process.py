"""One engine in a process of its own: start it, watch its memory, read its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.speed.cases import CENTRAL, Plan
from fedmoe.errors import FedMoEError
from simulation.ray.cluster import ALLOCATOR

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 1200.0
LOOK_SECONDS = 0.5


class EngineFailed(FedMoEError):
    """An engine's process ended without a report."""


@dataclass(frozen=True)
class Result:
    """What one process came to.

    Attributes:
        case, engine, repeat: which one it was.
        clients: of a round.
        first: seconds from the engine's start, everything imported, to the end of the first round.
        seconds: of each warm round.
        driver, tree: peak bytes of the process and of it with its descendants.
        down, up: payload bytes for one client, the mean of all rounds; 0: nothing travels.
    """

    case: str
    engine: str
    repeat: int
    clients: int
    first: float
    seconds: list[float]
    driver: int
    tree: int
    down: float
    up: float

    @property
    def seconds_of_client(self) -> float:
        """Seconds of the warm rounds for one client."""
        return sum(self.seconds) / (self.clients * len(self.seconds))


def run(plan: Plan, cache: Path, pfl_python: Path | None = None, repeat: int = 0) -> Result:
    """Run a plan in a new process.

    cache: folder of parsed data sets; pfl_python: the interpreter that has pfl.
    Raises EngineFailed with the end of what it printed if the process fails, or is at work for longer than a limit.
    """
    command = [sys.executable, "-m", f"benchmarks.speed.{'work' if plan.engine in CENTRAL else 'federated'}"]
    # The allocator for all of them: what hosts do by themselves must not count against the others.
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": str(ROOT), "FEDMOE_CACHE": str(cache.resolve())}
    if plan.engine == "pfl":  # one process a core, as many as our engines have
        launcher = f"-m torch.distributed.run --standalone --nproc-per-node={len(psutil.Process().cpu_affinity())}"
        command = [str(pfl_python), *launcher.split(), "-m", "benchmarks.speed.pfl"]
        environment["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="fedmoe-speed-") as name:
        given, reported, log = (Path(name) / file for file in ("plan.json", "report.json", "log.txt"))
        given.write_text(json.dumps(asdict(plan)), encoding="utf-8")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(given), str(reported)],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )
            driver, tree = peak_memory(process, time.time() + LIMIT_SECONDS)
        if process.returncode or not reported.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise EngineFailed(f"{plan.case}, {plan.engine}: exit {process.returncode}: {' / '.join(lines[-3:])}")
        report = json.loads(reported.read_text(encoding="utf-8"))
    begun, ended, bytes_down, bytes_up = zip(*report["rounds"], strict=True)
    seconds = [end - begin for begin, end in zip(begun, ended, strict=True)]
    down, up = (sum(sent) / (plan.clients * plan.rounds) for sent in (bytes_down, bytes_up))
    first = ended[0] - report["ready"]
    return Result(plan.case, plan.engine, repeat, plan.clients, first, seconds[1:], driver, tree, down, up)


def peak_memory(process: subprocess.Popen[bytes], deadline: float) -> tuple[int, int]:
    """Watch a process to its end, or end it at the deadline (Unix time); whatever it has started ends with it.

    Returns the most bytes that it took by itself, and together with its descendants.
    """
    watched = psutil.Process(process.pid)
    family: set[psutil.Process] = set()
    driver = tree = 0
    while process.poll() is None:
        if time.time() > deadline:
            process.kill()
        with suppress(psutil.Error):
            children = watched.children(recursive=True)
            family.update(children)
            own = memory_of(watched)
            driver, tree = max(driver, own), max(tree, own + sum(map(memory_of, children)))
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(family, timeout=5)
    return driver, tree


def memory_of(process: psutil.Process) -> int:
    """Return a process's share of its memory in bytes: a page that n processes map counts 1/n for each (PSS).

    Where the system does not tell, all that is resident; 0 if the process is gone.
    """
    with suppress(psutil.Error):
        found = process.memory_full_info()
        return int(getattr(found, "pss", found.rss))
    return 0
