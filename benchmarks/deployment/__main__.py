"""``python -m benchmarks.deployment survive | scale``: real processes on one machine.

``survive``: a long run, every client in every round, in which the database is locked once and each kind of part is
killed once. It passes if the run completes all rounds by itself and nothing is dead at the end.
``scale``: seconds a round for several numbers of clients. Both take settings of the run as further words.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.deployment.federation import Federation, kept, wait_for_round
from benchmarks.runs import exit_status

LOCKED_SECONDS = 12.0
SETTLE_SECONDS = 120.0  # after the last round, until a part that was started again has to work
Fault = tuple[str, Callable[[Federation], None]]


def faults() -> list[Fault]:
    """Return what is done to a federation, in order: one fault of each kind."""
    found: list[Fault] = [
        (f"database locked for {LOCKED_SECONDS:g} s", lambda each: each.hold_database(LOCKED_SECONDS))
    ]
    for who, client, part in (
        ("client 1's", 1, "supernode"),
        ("client 2's", 2, "superexec"),
        ("client 3's", 3, "resident"),
        ("client 4's", 4, "supervisor"),
        ("server's", None, "superexec"),
        ("server's", None, "superlink"),
        ("server's", None, "supervisor"),
    ):
        found.append((f"{who} {part} killed", _killing(client, part)))
    return found


def _killing(client: int | None, part: str) -> Callable[[Federation], None]:
    def kill(federation: Federation) -> None:
        federation.kill(client, part)
        if part == "supervisor":
            federation.start_again(client)

    return kill


def survive(given: argparse.Namespace, root: Path) -> bool:
    """Return whether the run completed all rounds and nothing was dead at the end."""
    planned = faults()
    federation = Federation(root, given.clients, given.rounds, given.words)
    started = time.monotonic()
    with federation.running():
        run = federation.start_run()
        for place, (name, do) in enumerate(planned, start=1):
            wait_for_round(federation, run, place * given.rounds // (len(planned) + 1))
            before, when = len(federation.records()), time.monotonic()
            do(federation)
            wait_for_round(federation, run, before + 2)  # the round that it hit, and one after it
            print(f"round {before}: {name}; two rounds later after {time.monotonic() - when:.0f} s", flush=True)
        status = run.wait()
        dead, deadline = federation.dead_parts(), time.monotonic() + SETTLE_SECONDS
        while dead and time.monotonic() < deadline:
            time.sleep(2.0)
            dead = federation.dead_parts()
        records = federation.records()
        lost = [record.round for record in records if record.failed]
        figures = {
            "clients": given.clients,
            "settings": given.words,
            "rounds": len(records),
            "status": status,
            "seconds": round(time.monotonic() - started),
            "median_seconds_a_round": round(median(record.seconds for record in records), 1),
            "rounds_without_a_client": lost,
            "dead_parts": dead,
            "load": os.getloadavg()[1],
        }
        print(figures, flush=True)
        kept(given.out, case="survive", **figures)
    return status == 0 and len(records) == given.rounds and not dead


def scale(given: argparse.Namespace, root: Path) -> bool:
    """Return whether all runs completed."""
    well = True
    for clients in given.numbers:
        place = root / str(clients)
        place.mkdir()
        federation = Federation(place, clients, given.rounds, given.words)
        with federation.running():
            status = federation.start_run().wait()
            later = [record.seconds for record in federation.records()[1:]] or [float("nan")]
            figures = {
                "clients": clients,
                "settings": given.words,
                "rounds": len(later) + 1,
                "status": status,
                "seconds_a_round": round(median(later), 1),
                "fastest": round(min(later), 1),
                "megabytes_pss": round(federation.memory() / 1e6),
                "load": os.getloadavg()[1],
            }
            print(figures, flush=True)
            kept(given.out, case="scale", **figures)
            well = well and status == 0
    return well


def main(words: Sequence[str]) -> int:
    """Run a benchmark; return the exit status, 1 if it did not pass."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.deployment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("survive", "scale"))
    parser.add_argument("words", nargs="*", help="settings of the run, such as privacy.secure_aggregation=off")
    parser.add_argument("--clients", type=int, default=12, help="of survive, at least 5 (default: %(default)s)")
    parser.add_argument("--numbers", type=int, nargs="+", default=[3, 6, 12, 20], help="of scale (default: 3 6 12 20)")
    parser.add_argument("--rounds", type=int, help="default: 30 of survive, 6 of scale")
    parser.add_argument("--out", type=Path, default=Path("deployment.jsonl"), help="file that figures are added to")
    given = parser.parse_intermixed_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # in good order: no part is left running
    given.rounds = given.rounds or (30 if given.what == "survive" else 6)
    with tempfile.TemporaryDirectory(prefix="fedmoe-") as temporary:
        return exit_status(lambda: {"survive": survive, "scale": scale}[given.what](given, Path(temporary)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
