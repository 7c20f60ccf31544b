"""The Flower ServerApp of FedMoE: from the run config to a finished run folder.

Keys of the run config: ``settings`` (JSON of the whole settings tree), ``run_dir`` (folder of this run; empty:
``save_dir/<time>-<name>``), ``resume`` (empty, or a checkpoint or run folder to go on from), ``clients`` (file of the
clients that a deployment has admitted, see ``server_folder``; empty: every client that connects takes part),
``simulated`` (true where a simulation's launcher says so; otherwise the clients are real ones), ``sees`` (a line on
what the server sees of real clients, as their launcher has decided) and ``json_logs`` (whether log lines are JSON).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from httpx import HTTPError
from rich.console import Console

from data.dataset import Dataset
from data.registry import load_dataset
from fedmoe.deployment.logs import log_about
from fedmoe.errors import FedMoEError
from fedmoe.loading import from_run_config
from fedmoe.settings import Settings
from fedmoe_server.deploy.deployed import Deployed, held_log, identity, log_of_apps, progress_log
from fedmoe_server.deploy.patience import PatientGrid
from fedmoe_server.report.report import write_report
from fedmoe_server.report.run_folder import (
    CHECKPOINTS,
    PRIVACY,
    bytes_needed,
    check_run_dir,
    describe_run,
    new_run_dir,
    write_document,
)
from fedmoe_server.report.tracking import Tracker
from fedmoe_server.rounds.checkpoints import (
    Checkpoint,
    CheckpointStore,
    SavingGrid,
    find_checkpoint,
    load_checkpoint,
    stopped_early,
)
from fedmoe_server.rounds.clients import ClientDirectory
from fedmoe_server.rounds.exchange import KnownClients
from fedmoe_server.rounds.halting import Callback, Paused
from fedmoe_server.rounds.loop import ServerLoop
from fedmoe_server.rounds.record import LoopState, list_arrays
from fedmoe_server.rounds.strategy import layered_strategy
from model.build import initial_arrays, parameter_groups
from strategies import AggregationSchedule, PrivacyLedger, spent_before, state_arrays

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    config = context.run_config
    run_dir, resume, clients = (_path(config.get(key, "")) for key in ("run_dir", "resume", "clients"))
    settings = from_run_config(config)
    sees = str(config.get("sees", ""))
    deployed = None if config.get("simulated") is True else Deployed(clients, str(context.run_id), sees)
    if deployed is not None:
        # Flower lets the app's standard error go nowhere.
        file = None if clients is None else log_of_apps(clients)
        log_about(config.get("json_logs") is True, file, run=context.run_id)
        grid, settings = cast(Grid, PatientGrid(grid, settings.deployment.rest_seconds)), settings.in_deployment()
    if clients is None or run_dir is None:
        run(grid, settings, run_dir, resume, deployed=deployed)
        return
    with held_log(progress_log(clients, run_dir)) as log:
        run(grid, settings, run_dir, resume, Console(file=log, width=200), deployed)


def run(
    grid: Grid,
    settings: Settings,
    run_dir: Path | None,
    resume: Path | None,
    console: Console | None = None,
    deployed: Deployed | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Run, or go on with, a federation and return its run folder.

    Args:
        grid: how clients are reached.
        settings: all settings.
        run_dir: folder of the run; None: a new one in ``save_dir``, or on a resume the folder of the resumed run.
        resume: a checkpoint, or a run folder whose latest checkpoint is meant.
        console: where to show progress; None: standard output.
        deployed: that the clients are real ones; None: they are simulated.
        callbacks: called with each round's record, see ``rounds.halting``.

    Raises:
        FedMoEError: something the user can put right; ``result.json`` then says "failed" if the run had begun.
        Paused: a callback, or Ctrl-C in a simulation, has asked for it.
    """
    started = time.monotonic()
    source = find_checkpoint(resume) if resume is not None and not stopped_early(resume) else None
    if deployed is not None and settings.data.new_items:
        raise FedMoEError("data.new_items withholds items from simulated clients; real ones train on all they met")
    dataset = load_dataset(settings)
    arrays = initial_arrays(settings, dataset)
    groups = parameter_groups(settings, dataset)
    directory = _directory(grid, settings, deployed)
    strategy, aggregation, updates, sums = layered_strategy(
        settings, groups, grid, directory.client_ids, deployed is not None
    )
    schedule = aggregation.schedule
    state_arrays(strategy)  # a strategy that no checkpoint could hold is refused now, not at the first checkpoint

    state = LoopState(list_arrays(arrays))
    if source is not None:
        checkpoint = load_checkpoint(source, state.arrays)
        # Real clients keep their private state themselves.
        own = settings.training.client != "plain"
        needed = deployed is None and (own or _clients_keep_state(schedule, checkpoint))
        state = checkpoint.restore(strategy, grid, needs_clients=needed)
    folder = run_dir or _default_run_dir(settings, source or resume)
    ledger = None
    if updates is not None:
        before = None if source is None else source.resolve().parent.parent / PRIVACY
        entries = [record.privacy for record in state.history if record.privacy]
        spent = spent_before(before, entries, deployed is not None)
        ledger = PrivacyLedger(settings, updates, partial(write_document, folder / PRIVACY), spent)
    begun = resume if source is None else source.resolve().parent.parent
    going_on = begun is not None and begun.resolve() == folder.resolve()
    check_run_dir(folder, _bytes_needed(settings, dataset, arrays, schedule, grid), resuming=going_on)
    store = CheckpointStore(folder / CHECKPOINTS)
    if going_on:
        store.forget_after(state.round)
    earlier = sum(record.seconds for record in state.history)
    tracker = Tracker(folder, settings, state.history, console, every_round=deployed is not None)
    secure, sees = None, ""
    if deployed is not None:  # a simulation adds plainly, the same integers
        from fedmoe_server.deploy.protection import NO_LAUNCHER, switched_off, what_the_server_sees
        from fedmoe_server.rounds.secure import secure_rounds

        secure = secure_rounds(settings, deployed, sums)
        why = switched_off(settings) or NO_LAUNCHER
        sees = deployed.sees or what_the_server_sees(settings, secure is not None, why)
    describe_run(folder, deployed is None, dataset.all_fingerprints(), going_on, sees)
    if isinstance(directory, ClientDirectory):
        directory.note = tracker.note
        if deployed is not None:
            directory.announce = identity(settings, dataset, state.round)
    deadline = None if deployed is None else settings.deployment.round_deadline or None
    cases = () if dataset.new is None else tuple(dataset.new.users.tolist())
    clients = grid, strategy, aggregation, settings, directory
    loop = ServerLoop(*clients, tracker, store, deadline, ledger, cases, sums, secure, callbacks, deployed is None)
    with _quiet_flower(), _failure_recorded(tracker):
        known = str(dataset.interactions.num_users) if deployed is None else "the connected"
        if dataset.reading and deployed is not None:  # a simulation's plan has shown it
            tracker.note(dataset.reading)
        if sees:
            tracker.note(sees)
        tracker.note(_headline(settings, dataset, state, folder, known))
        result = loop.run(state)
        tracker.finish(result, earlier + time.monotonic() - started)
    if deployed is not None:  # a simulation writes its own, with what needs no training beside it
        tracker.note(f"report: {write_report(folder)}")
    return folder


def _directory(grid: Grid, settings: Settings, deployed: Deployed | None) -> ClientDirectory | KnownClients:
    """Return who tells which client a node is: the admitted keys, an engine that knows, or the nodes themselves."""
    if deployed is not None:
        return deployed.directory(settings.deployment)
    return KnownClients() if hasattr(grid, "client_ids") else ClientDirectory()


def _path(value: object) -> Path | None:
    return Path(str(value)) if value else None


def _default_run_dir(settings: Settings, source: Path | None) -> Path:
    """Return the folder of the resumed run if there is one, else a new one."""
    if source is not None and source.resolve().parent.name == CHECKPOINTS:
        return source.resolve().parent.parent
    if source is not None and stopped_early(source):
        return source
    return new_run_dir(settings, datetime.now())


def _bytes_needed(
    settings: Settings, dataset: Dataset, arrays: Mapping[str, np.ndarray], schedule: AggregationSchedule, grid: Grid
) -> int:
    rounds, users = settings.federation.num_rounds, dataset.interactions.num_users
    private = schedule.private_names(rounds) if isinstance(grid, SavingGrid) else []
    cohort = max(1, round(settings.federation.client_fraction * users))
    return bytes_needed(
        model_bytes=sum(array.nbytes for array in arrays.values()),
        client_bytes=sum(arrays[name].nbytes for name in private),
        clients=min(users, rounds * cohort),
        rounds=rounds,
    )


def _clients_keep_state(schedule: AggregationSchedule, checkpoint: Checkpoint) -> bool:
    """Whether any round up to the checkpoint left private parameters with the clients (there are two phases)."""
    done = checkpoint.state.round
    return done > 0 and any(schedule.private_names(number) for number in (1, done))


def _headline(settings: Settings, dataset: Dataset, state: LoopState, folder: Path, users: str) -> str:
    federation = settings.federation
    verb = f"goes on after round {state.round}" if state.round else "starts"
    short = f", {dataset.dropped_users} users with fewer than {settings.data.min_items} items left out"
    return (
        f"{settings.name} {verb}: {federation.num_rounds} rounds, {federation.client_fraction:.0%} of {users} clients "
        f"a round{short if dataset.dropped_users else ''}, {dataset.interactions.num_items} items, "
        f"{federation.strategy}; {folder}"
    )


@contextmanager
def _failure_recorded(tracker: Tracker) -> Iterator[None]:
    """Write into ``result.json`` why a run ended early, and give the terminal back."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit | HTTPError | Paused):  # a signal, or the server is gone: it did not fail
            tracker.close()
            raise
        reason = str(error) if isinstance(error, FedMoEError) else f"{type(error).__name__}: {error}".rstrip(": ")
        with suppress(FedMoEError):  # the first error is the one to show
            tracker.fail(reason)
        raise


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Keep Flower's lines about every round off the terminal; its warnings stay."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
