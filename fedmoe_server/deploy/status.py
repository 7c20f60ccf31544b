"""What an operator wants to see at a glance: the server's parts, the run, the clients, traffic and disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from fedmoe.deployment.folder import read_json
from fedmoe.deployment.ports import listens, parse_address
from fedmoe.deployment.processes import recorded
from fedmoe.errors import FedMoEError
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


def run_status_of(server: ServerFolder, run: KnownRun) -> RunStatus:
    """Return how a run is doing. Raises FedMoEError if a file of its folder is damaged."""
    metrics, settings = run.path / METRICS, run.path / SETTINGS
    records = read_records(metrics) if metrics.exists() else ()
    total = None
    if settings.exists():
        total = yaml.safe_load(settings.read_text(encoding="utf-8"))["federation"]["num_rounds"]
    return RunStatus(run, state_of(server, run), records, total, read_result(run.path))


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
    addresses = server.addresses()
    up = listens(*parse_address(addresses.control)) and listens(*parse_address(addresses.clients))
    lines = [f"server   {'up' if up else 'DOWN'}; {'; '.join(_parts(server)) or 'no supervisor'}"]
    runs = known_runs(server)
    shown = [status for status in (run_status_of(server, run) for run in runs[-10:]) if not status.state.over]
    if not shown and runs:
        shown = [run_status_of(server, runs[-1])]
    for status in shown:
        lines += _run_lines(status)
    nodes: list[Mapping[str, Any]] = []
    if up:
        try:
            nodes = server.flwr("supernode", "list", CONNECTION)["nodes"]
        except FedMoEError as error:
            lines.append(f"clients  unknown: {error}")
    if nodes or not up:
        lines += _client_lines(clients_of(server, nodes, shown[-1].records if shown else ()), up)
    lines.append(_disk(server, shown))
    return lines, up


def run_table(server: ServerFolder) -> list[str]:
    """Return one line for each run that was submitted, the latest last."""
    return [
        f"{run.number}  {_utc(run.submitted)}  {status.state.value:<9}  {status.rounds:>7}  {run.folder}"
        for run in known_runs(server)
        for status in (run_status_of(server, run),)
    ]


def _parts(server: ServerFolder) -> Iterator[str]:
    """Say of each of the server's programs whether it runs, and how often it was started again."""
    for name, program in read_json(server.supervisor, {}).get("programs", {}).items():
        alive = program["process"] is not None and recorded(program) is not None
        beat = server.logs / f"{name}.beat"
        age = time.time() - beat.stat().st_mtime if beat.exists() else None
        sign = "" if age is None or not alive else f", last sign of life {max(0.0, age):.0f} s ago"
        again = f", started again {program['restarts']} times" if program["restarts"] else ""
        yield f"{name} {'runs' if alive else 'DEAD'}{sign}{again}"


def _run_lines(status: RunStatus) -> Iterator[str]:
    run, records = status.run, status.records
    yield f"run      {run.number}: {status.state.value}, {status.rounds} rounds; {run.folder}"
    if status.state is State.FAILED and status.result.error:
        yield f"         {status.result.error}"
    if records:
        last = records[-1]
        ended = (run.path / METRICS).stat().st_mtime
        replied = last.clients - sum(failure.stage == "train" for failure in last.failed)
        yield f"         round {last.round}: {replied} of {last.clients} clients in {duration(last.seconds)}"
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
            words.append(f"missing since {each.since} UTC" if each.since else "has never connected")
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


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
