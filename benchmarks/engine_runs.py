"""One engine in a process of its own: start it, watch its memory, read its report; results are kept as JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.engine_cases import Plan
from benchmarks.engine_memory import LOOK_SECONDS, MemoryWatch, peaks
from benchmarks.engine_report import Report
from fedmoe.errors import FedMoEError
from simulation.ray.cluster import ALLOCATOR

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 1200.0
_MODULES = {"data": "engine_data", "central": "engine_central", "pfl": "engine_pfl"}  # the others: engine_federated


@dataclass(frozen=True)
class Phase:
    """What one phase of a process came to.

    Attributes:
        clients: of a round.
        seconds: of each warm round.
        driver, tree: peak bytes, over the first phase from the start of the process on.
        down, up: payload bytes for one client, the mean of the phase's rounds; 0: nothing travels.
    """

    clients: int
    seconds: list[float]
    driver: int
    tree: int
    down: float
    up: float


@dataclass(frozen=True)
class Result:
    """What one process came to.

    Attributes:
        case, engine, repeat: which one it was.
        plan: what it was given.
        start: seconds from its launch until all was imported and the engine's own start began.
        first: seconds from there to the end of the first round.
        phases: see Phase.
        notes: what else the process told.
    """

    case: str
    engine: str
    repeat: int
    plan: dict[str, Any]
    start: float
    first: float
    phases: list[Phase]
    notes: dict[str, Any]

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Self:
        """Return what ``asdict`` has taken apart."""
        return cls(**{**tree, "phases": [Phase(**phase) for phase in tree["phases"]]})


class EngineFailed(FedMoEError):
    """An engine's process ended without a report."""


def run(plan: Plan, repeat: int, cache: Path, pfl_python: Path | None = None) -> Result:
    """Run a plan in a new process.

    cache: folder of parsed data sets; pfl_python: the interpreter that has pfl.
    Raises EngineFailed with the end of what it printed if the process fails, or is at work for longer than a limit.
    """
    with tempfile.TemporaryDirectory(prefix="fedmoe-engine-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan.as_json()), encoding="utf-8")
        log = folder / "log.txt"
        with log.open("wb") as output:
            launched = time.time()
            process = subprocess.Popen(
                [*_command(plan.engine, pfl_python), str(folder / "plan.json"), str(folder / "report.json")],
                env=_environment(cache, plan.engine),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
            )
            watch = _watched(process, launched + LIMIT_SECONDS)
        if process.returncode or not (folder / "report.json").is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise EngineFailed(f"{plan.case}, {plan.engine}: exit {process.returncode}: {' / '.join(lines[-3:])}")
        report = Report.read(folder / "report.json")
    phases = [_phase(index, report, watch, launched) for index in range(len(plan.phases))]
    first = report.rounds[0].ended - report.ready
    return Result(plan.case, plan.engine, repeat, plan.as_json(), report.ready - launched, first, phases, report.notes)


def _command(engine: str, pfl_python: Path | None) -> list[str]:
    module = f"benchmarks.{_MODULES.get(engine, 'engine_federated')}"
    if engine != "pfl":
        return [sys.executable, "-m", module]
    # One process a core, as many as our engines have.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cores}"]
    return [str(pfl_python), *launcher, "-m", module]


def _environment(cache: Path, engine: str) -> dict[str, str]:
    environment = {
        **os.environ,
        **ALLOCATOR,  # all of them: what hosts do by themselves must not count against the others
        "PYTHONPATH": str(ROOT),
        "FEDMOE_CACHE": str(cache),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return environment | ({"OMP_NUM_THREADS": "1"} if engine == "pfl" else {})


def _watched(process: subprocess.Popen[bytes], deadline: float) -> MemoryWatch:
    """Watch a process to its end, or end it at the deadline (Unix time); what it has started ends with it."""
    watch = MemoryWatch(psutil.Process(process.pid))
    try:
        while process.poll() is None and time.time() < deadline:
            watch.look()
            try:
                process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        watch.end_family()
    return watch


def _phase(index: int, report: Report, watch: MemoryWatch, launched: float) -> Phase:
    rounds = [done for done in report.rounds if done.phase == index]
    warm = rounds[1:] if index == 0 else rounds
    begun = launched if index == 0 else rounds[0].begun
    driver, tree = peaks(watch.looks, begun, rounds[-1].ended + LOOK_SECONDS)
    messages = sum(done.clients for done in rounds)
    down, up = (sum(getattr(done, key) for done in rounds) / messages for key in ("bytes_down", "bytes_up"))
    return Phase(rounds[0].clients, [done.seconds for done in warm], driver, tree, down, up)


class Results:
    """The results of a folder, one JSON line each; what is there is not run again."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, which is made. Raises FedMoEError if its results cannot be read."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.jsonl"
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
            self.all = [Result.from_json(json.loads(line)) for line in lines]
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise FedMoEError(f"{self._path} cannot be read ({error}): choose another --folder") from error

    def has(self, plan: Plan, repeat: int) -> bool:
        """Whether a result is there already. Raises FedMoEError if it is one of another plan."""
        for result in self.of(plan.case, plan.engine):
            if result.repeat == repeat:
                if result.plan != plan.as_json():
                    raise FedMoEError(f"{self._path} holds results of other settings: choose another --folder")
                return True
        return False

    def add(self, result: Result) -> None:
        """Keep a result."""
        self.all.append(result)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def of(self, case: str, engine: str) -> list[Result]:
        """Return the results of an engine in a case."""
        return [result for result in self.all if result.case == case and result.engine == engine]

    def cases(self) -> Sequence[str]:
        """Return the names of the cases in the order in which they were run."""
        return list(dict.fromkeys(result.case for result in self.all))
