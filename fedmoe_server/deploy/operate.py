"""The commands around a run: submit it, follow it, stop it, list all, and see how the federation is."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings, settings_of_run
from fedmoe.settings import Settings
from fedmoe_server.deploy.known_runs import KnownRun, find_run, known_runs, state_of
from fedmoe_server.deploy.server_folder import ServerFolder
from fedmoe_server.deploy.status import run_status_of, run_table, status_lines
from fedmoe_server.deploy.submission import RunFailed, stop_run, submit
from fedmoe_server.deploy.submission import follow as follow_to_its_end

Resume = Callable[[KnownRun], KnownRun | None]
WATCH_SECONDS = 5.0
RESUME_PAUSE = 5.0  # seconds before a killed run is gone on with
BACK_SECONDS = 180.0  # that the server has to come back
MOST_RESUMES = 3  # of a run that gets no further


def settings_of(words: list[str]) -> Settings:
    """Return the settings that words ask for, after printing what they should be warned of."""
    settings, warnings = load_settings(words)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return settings


def run(given: argparse.Namespace, extra: list[str]) -> int:
    """Run a federation; return 0 if it completed, 1 if it failed."""
    server = ServerFolder(given.dir)
    settings = settings_of(given.words) if given.resume is None else settings_of_run(given.resume, given.words)
    submitted = submit(server, settings, given.resume, extra, partial(print, flush=True), given.json_logs)
    print(f"run {submitted.number} submitted; {submitted.path}", flush=True)
    return _followed(server, submitted, partial(_resumed, server, extra, given.json_logs))


def _resumed(server: ServerFolder, extra: list[str], json_logs: bool, killed: KnownRun) -> KnownRun | None:
    """Go on with a run whose app was killed, once the server is up again; None: it does not come back.

    A run that has no checkpoint yet begins anew.
    """
    deadline, told = time.monotonic() + BACK_SECONDS, ""
    while time.monotonic() < deadline:
        time.sleep(RESUME_PAUSE)
        try:
            settings, show = settings_of_run(killed.path), partial(print, flush=True)
            return submit(server, settings, killed.path, extra, show, json_logs)
        except FedMoEError as error:
            if str(error) != told:
                print(f"cannot go on yet: {error}", flush=True)
            told = str(error)
    return None


def follow(given: argparse.Namespace, extra: list[str]) -> int:
    """Show a run from its beginning to its end; return 0 if it completed, 1 if not."""
    server = ServerFolder(given.dir)
    server.addresses()
    return _followed(server, find_run(server, given.run))


def stop(given: argparse.Namespace, extra: list[str]) -> int:
    """Stop a run; return when it has ended."""
    server = ServerFolder(given.dir)
    server.addresses()
    going = [each for each in known_runs(server) if not state_of(server, each).over]
    if given.run is None and len(going) != 1:
        which = "no run is going on" if not going else f"{len(going)} runs are going on: name one, or its folder"
        raise FedMoEError(f"{which}; 'python -m fedmoe_server runs' lists them")
    chosen = find_run(server, given.run, going if given.run is None else None)
    stop_run(server, chosen)
    print(f"run {chosen.number} was stopped; {chosen.path}")
    return 0


def runs(given: argparse.Namespace, extra: list[str]) -> int:
    """List the runs that were submitted: number, when (UTC), state, rounds done, folder."""
    server = ServerFolder(given.dir)
    server.addresses()
    for line in run_table(server) or ["no run was submitted yet"]:
        print(line)
    return 0


def status(given: argparse.Namespace, extra: list[str]) -> int:
    """Show how the federation is; return 0 if the server is up, 1 if not."""
    server = ServerFolder(given.dir)
    while True:
        lines, up = status_lines(server)
        if given.watch and sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print("\n".join(lines), flush=True)
        if not given.watch:
            return 0 if up else 1
        print(f"{datetime.now(UTC):%H:%M:%S} UTC; Ctrl-C ends this view", flush=True)
        time.sleep(WATCH_SECONDS)


def _followed(server: ServerFolder, run: KnownRun, resume: Resume = lambda run: None) -> int:
    """Follow a run to its end; return the exit status. resume: goes on with one that was killed, if it can."""
    left, done = MOST_RESUMES, -1
    while True:
        try:
            follow_to_its_end(server, run, partial(print, flush=True))
        except RunFailed as error:
            reached = run_status_of(server, run).done
            left, done = MOST_RESUMES if reached > done else left - 1, reached
            following = resume(run) if error.killed and left > 0 else None
            if following is None:
                print(f"error: {error}", file=sys.stderr)
                return 1
            print(f"run {run.number} was killed after round {done}; run {following.number} goes on", flush=True)
            run = following
        except KeyboardInterrupt:
            where = f"{run.number} --dir {server.path}"
            print(
                "\nthe run goes on without being followed. Follow it again with: "
                f"python -m fedmoe_server follow {where}\nstop it with: python -m fedmoe_server stop {where}"
            )
            raise
        else:
            print(f"run {run.number} completed; {run.path}")
            return 0
