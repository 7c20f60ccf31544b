"""What there is to see of a server at one moment: its parts, its latest runs, its clients.

It is read where ``status`` reads it, from run folders and from the server's own word on who is connected. Nothing of a
history, no key and no item's id is in it, since none of these is there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any

from fedmoe.errors import FedMoEError
from fedmoe_server.deploy.known_runs import State, known_runs
from fedmoe_server.deploy.server_folder import ServerFolder
from fedmoe_server.deploy.status import (
    ClientStatus,
    Part,
    RunStatus,
    clients_of,
    is_up,
    nodes_of,
    parts_of,
    replied,
    run_status_of,
    utc,
)
from fedmoe_server.report.diagnosis import experts_seen, values_of
from fedmoe_server.rounds.record import GLOBAL_PREFIX, Failure, RoundRecord, experts_of

RUNS = 10  # that are shown, the latest
NODES_SECONDS = 30.0  # for which the server's answer on its nodes is good, since each question starts a process
FAILURES = 20  # that are shown of a run, the latest


@dataclass(frozen=True)
class Overview:
    """A server at one moment. runs: the latest first; clients: whether online is not known where ``asked`` is False."""

    up: bool
    parts: tuple[Part, ...]
    runs: tuple[RunStatus, ...]
    clients: tuple[ClientStatus, ...]
    asked: bool


class Watcher:
    """Looks at a server, as often as it is asked to, and asks the server itself no more often than is good for it."""

    def __init__(self, server: ServerFolder) -> None:
        self._server = server
        self._nodes: Sequence[Mapping[str, Any]] | None = None
        self._asked = -NODES_SECONDS
        self._asking = Lock()

    def look(self) -> Overview:
        """Return what there is to see; nobody waits for the server's answer. FedMoEError: a file is damaged."""
        server, up = self._server, is_up(self._server)
        if up and time.monotonic() - self._asked > NODES_SECONDS and self._asking.acquire(blocking=False):
            Thread(target=self._ask, daemon=True).start()
        nodes = self._nodes if up else None
        runs = [run_status_of(server, run) for run in reversed(known_runs(server)[-2 * RUNS :])]
        shown = tuple(run for run in runs if run.state is not State.RESUMED)[:RUNS]
        clients = clients_of(server, nodes or (), shown[0].records if shown else ())
        return Overview(up, tuple(parts_of(server)), shown, tuple(clients), nodes is not None)

    def _ask(self) -> None:
        try:
            self._nodes = nodes_of(self._server)
        except FedMoEError:  # the server has gone, or is too busy to say
            self._nodes = None
        finally:
            self._asked = time.monotonic()
            self._asking.release()


def failures_by_kind(records: Sequence[RoundRecord]) -> Counter[str]:
    """Return how many answers failed, by the word of the failure's kind."""
    return Counter(failure.kind.word for record in records for failure in record.failed)


def total_of(records: Sequence[RoundRecord], name: str) -> int:
    """Return the sum of a number of the rounds, such as ``bytes_up``."""
    return sum(getattr(record, name) for record in records)


def epsilon_of(records: Sequence[RoundRecord]) -> float | None:
    """Return the epsilon that was spent, None in a run without privacy."""
    return next((record.privacy["epsilon"] for record in reversed(records) if record.privacy), None)


def described(overview: Overview, chosen: str | None) -> dict[str, Any]:
    """Return an overview as JSON for the page. chosen: number of the run whose rounds go along; None: the latest."""
    run = next((run for run in overview.runs if run.run.number == chosen), next(iter(overview.runs), None))
    return {
        "up": overview.up,
        "parts": [{"name": part.name, "alive": part.alive, "words": str(part)} for part in overview.parts],
        "asked": overview.asked,
        # The numbers of clients and runs are larger than those that a browser counts with.
        "clients": [
            {"client": str(each.client), "online": each.online, "since": each.since, "failed": len(each.failures)}
            for each in overview.clients
        ],
        "runs": [_run(each) for each in overview.runs],
        "chosen": None if run is None else {"number": run.run.number, **_course(run)},
    }


def _run(run: RunStatus) -> dict[str, Any]:
    records, last = run.records, run.records[-1] if run.records else None
    test = {name: run.result.test.get("personalised", {}).get(name) for name in ("hr@10", "ndcg@10")}
    return {
        "number": run.run.number,
        "name": run.run.path.name,
        "submitted": utc(run.run.submitted),
        "state": run.state.value,
        "over": run.state.over,
        "done": run.done,
        "planned": run.total,
        "seconds_left": run.seconds_left,
        "clients": last and [replied(last), last.clients],
        "bytes": [total_of(records, "bytes_down"), total_of(records, "bytes_up")],
        "epsilon": epsilon_of(records),
        "error": run.result.error,
        "test": None if None in test.values() else test,
    }


def _course(run: RunStatus) -> dict[str, Any]:
    """Return what is plotted of a run, a line each, and its latest failures."""
    records = run.records
    both = {"with private parameters": "", "server's model alone": GLOBAL_PREFIX}
    lines = [("Training loss", "loss", "train", {"loss": ""})]
    lines += [(name, key, "validation", both) for name, key in (("HR@10", "hr@10"), ("NDCG@10", "ndcg@10"))]
    lines += [("Gate", "gate", "train", {"gate": ""})]
    plots = [
        (title, {label: values_of(records, prefix + key, part) for label, prefix in labels.items()})
        for title, key, part, labels in lines
    ]
    plots.append(("Router", {name: values_of(records, f"router-{name}") for name in experts_seen(records)}))
    rounds, phases = [record.round for record in records], dict.fromkeys(p for r in records for p in r.phases)
    spent = {phase: (rounds, [record.phases.get(phase, 0.0) for record in records]) for phase in phases}
    plots.append(("Seconds a round", spent or {"all": (rounds, [record.seconds for record in records])}))
    failed = [(record.round, failure) for record in records for failure in record.failed]
    return {
        "plots": [
            {"title": title, "lines": [{"name": name, "x": x, "y": y} for name, (x, y) in lines.items() if x]}
            for title, lines in plots
            if any(x for x, _ in lines.values())
        ],
        "failures": [_failure(number, failure) for number, failure in failed[-FAILURES:]],
    }


def _failure(number: int, failure: Failure) -> dict[str, Any]:
    why = {"stage": failure.stage, "kind": failure.kind.word, "said": failure.said}
    return {"round": number, "client": failure.name, **why}


def latest_metrics(run: RunStatus) -> dict[tuple[str, str], float]:
    """Return (part, name) -> the latest value of the training's loss, gate and router, and of the validation."""
    found: dict[tuple[str, str], float] = {}
    for record in run.records:
        shown = ("loss", "gate", *(f"router-{name}" for name in experts_of(record.train)))
        for part, metrics in (("train", record.train), ("validation", record.validation or {})):
            for name, value in metrics.items():
                if value is not None and (part == "validation" or name in shown):
                    found[part, name] = value
    return found
