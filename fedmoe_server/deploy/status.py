"""What an operator wants to see at a glance: the server's parts, the run, the clients, traffic and disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from fedmoe.deployment.ports import listens, parse_address
from fedmoe.deployment.processes import recorded
from fedmoe.errors import FedMoEError
from fedmoe.files import read_json
from fedmoe_server.deploy.known_runs import KnownRun, State, known_runs, state_of
from fedmoe_server.deploy.server_folder import CONNECTION, ServerFolder
from fedmoe_server.report.progress import duration
from fedmoe_server.report.run_folder import METRICS, SETTINGS, read_records, read_result
from fedmoe_server.rounds.record import Failure, Result, RoundRecord

RECENT = 5  # rounds from which the time left is estimated


@dataclass(frozen=True)
class RunStatus:
    """A run as its folder tells it. total: rounds that it is to do, None while that is not known."""

    run: KnownRun
    state: State
    records: tuple[RoundRecord, ...]
    total: int | None
    result: Result

    @property
    def seconds_left(self) -> float | None:
        """Estimate of what the remaining rounds take, None while there is none."""
        if self.state is not State.RUNNING or not self.records or self.total is None:
            return None
        return (self.total - self.done) * fmean(record.seconds for record in self.records[-RECENT:])

    @property
    def done(self) -> int:
        """Rounds done."""
        return self.records[-1].round if self.records else 0

    @property
    def rounds(self) -> str:
        """Rounds done, of how many."""
        return f"{self.done}/{'?' if self.total is None else self.total}"


@dataclass(frozen=True)
class ClientStatus:
    """An admitted client. since: when it came or went, in UTC, "" if it never came; failures: of the run shown."""

    client: int
    online: bool
    since: str
    failures: tuple[tuple[int, Failure], ...] = ()


@dataclass(frozen=True)
class Part:
    """One of the server's programs. beat: seconds since its last sign of life; restarts: times it was started again."""

    name: str
    alive: bool
    beat: float | None
    restarts: int

    def __str__(self) -> str:
        sign = "" if self.beat is None or not self.alive else f", last sign of life {self.beat:.0f} s ago"
        again = f", started again {self.restarts} times" if self.restarts else ""
        return f"{self.name} {'runs' if self.alive else 'DEAD'}{sign}{again}"


def is_up(server: ServerFolder) -> bool:
    """Whether both ports of the server answer."""
    addresses = server.addresses()
    return listens(*parse_address(addresses.control)) and listens(*parse_address(addresses.clients))


def nodes_of(server: ServerFolder) -> list[Mapping[str, Any]]:
    """Ask the server for its nodes, which starts a process. Raises FedMoEError if it does not answer."""
    nodes: list[Mapping[str, Any]] = server.flwr("supernode", "list", CONNECTION)["nodes"]
    return nodes


def run_status_of(server: ServerFolder, run: KnownRun) -> RunStatus:
    """Return how a run is doing. Raises FedMoEError if a file of its folder is damaged."""
    metrics, settings = run.path / METRICS, run.path / SETTINGS
    records = _records(metrics, _stamp(metrics)) if metrics.exists() else ()
    total = _planned(settings, _stamp(settings)) if settings.exists() else None
    return RunStatus(run, state_of(server, run), records, total, read_result(run.path))


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return what changes with a file's content."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=16)
def _records(path: Path, stamp: tuple[int, int, int]) -> tuple[RoundRecord, ...]:
    return read_records(path)


@lru_cache(maxsize=64)
def _planned(path: Path, stamp: tuple[int, int, int]) -> int:
    return int(yaml.safe_load(path.read_text(encoding="utf-8"))["federation"]["num_rounds"])


def clients_of(
    server: ServerFolder, nodes: Sequence[Mapping[str, Any]], records: Sequence[RoundRecord]
) -> list[ClientStatus]:
    """Return the admitted clients. nodes: as ``flwr supernode list`` describes them; records: the run's rounds."""
    described = {int(node["node-id"]): node for node in nodes}
    failures: dict[int, list[tuple[int, Failure]]] = {}
    for record in records:
        for failure in record.failed:
            failures.setdefault(failure.client if failure.client is not None else -1, []).append(
                (record.round, failure)
            )
    found = []
    for entry in server.admitted():
        node = described.get(entry.node, {})
        online = node.get("status") == "online"
        since = str(node.get("online-at" if online else "offline-at", "")).replace("N/A", "")
        found.append(ClientStatus(entry.client, online, since, tuple(failures.get(entry.client, ()))))
    return found


def status_lines(server: ServerFolder) -> tuple[list[str], bool]:
    """Return the lines to show, and whether the server is up."""
    up = is_up(server)
    lines = [f"server   {'up' if up else 'DOWN'}; {'; '.join(map(str, parts_of(server))) or 'no supervisor'}"]
    runs = known_runs(server)
    shown = [status for status in (run_status_of(server, run) for run in runs[-10:]) if not status.state.over]
    if not shown and runs:
        shown = [run_status_of(server, runs[-1])]
    for status in shown:
        lines += _run_lines(status)
    nodes: list[Mapping[str, Any]] = []
    if up:
        try:
            nodes = nodes_of(server)
        except FedMoEError as error:
            lines.append(f"clients  unknown: {error}")
    if nodes or not up:
        lines += _client_lines(clients_of(server, nodes, shown[-1].records if shown else ()), up)
    lines.append(_disk(server, shown))
    return lines, up


def replied(record: RoundRecord) -> int:
    """Return how many clients' training a round has."""
    return record.clients - sum(failure.stage == "train" for failure in record.failed)


def run_table(server: ServerFolder) -> list[str]:
    """Return one line for each run that was submitted, the latest last."""
    return [
        f"{run.number}  {utc(run.submitted)}  {status.state.value:<9}  {status.rounds:>7}  {run.folder}"
        for run in known_runs(server)
        for status in (run_status_of(server, run),)
    ]


def parts_of(server: ServerFolder) -> Iterator[Part]:
    """Return the server's programs as its supervisor has written them down."""
    for name, program in read_json(server.supervisor, {}).get("programs", {}).items():
        alive = program["process"] is not None and recorded(program) is not None
        beat = server.logs / f"{name}.beat"
        age = max(0.0, time.time() - beat.stat().st_mtime) if beat.exists() else None
        yield Part(name, alive, age, program["restarts"])


def _run_lines(status: RunStatus) -> Iterator[str]:
    run, records = status.run, status.records
    yield f"run      {run.number}: {status.state.value}, {status.rounds} rounds; {run.folder}"
    if status.state is State.FAILED and status.result.error:
        yield f"         {status.result.error}"
    if records:
        last = records[-1]
        ended = (run.path / METRICS).stat().st_mtime
        yield f"         round {last.round}: {replied(last)} of {last.clients} clients in {duration(last.seconds)}"
        if status.state is State.RUNNING:
            left = status.seconds_left
            about = "" if left is None else f"; about {duration(left)} left"
            yield f"         round {last.round + 1} began {duration(max(0.0, time.time() - ended))} ago{about}"
        down, up = sum(record.bytes_down for record in records), sum(record.bytes_up for record in records)
        yield f"traffic  {down / 1e6:.1f} MB to clients, {up / 1e6:.1f} MB from them"


def _client_lines(clients: Sequence[ClientStatus], up: bool) -> Iterator[str]:
    online = sum(each.online for each in clients)
    known = f"{online} of {len(clients)} admitted are online" if up else f"{len(clients)} admitted"
    yield f"clients  {known}"
    for each in clients:
        words = []
        if up and not each.online:
            words.append(f"missing since {each.since.rstrip('Z')} UTC" if each.since else "has never connected")
        if each.failures:
            number, last = each.failures[-1]
            often = f"failed {len(each.failures)} times, last" if len(each.failures) > 1 else "failed"
            words.append(f"{often} in round {number} ({last.stage}): {last.said}")
        if words:
            yield f"         client {each.client}: {'; '.join(words)}"


def _disk(server: ServerFolder, shown: Sequence[RunStatus]) -> str:
    place = shown[-1].run.path if shown and shown[-1].run.path.exists() else server.path
    free = shutil.disk_usage(place).free
    folders = {"server": server.path, **({"run": place} if place != server.path else {})}
    used = ", ".join(f"{name} {_size(folder) / 1e6:.0f} MB" for name, folder in folders.items())
    return f"disk     {used}; {free / 1e9:.1f} GB free"


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def utc(seconds: float) -> str:
    """Return a time as people read it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
