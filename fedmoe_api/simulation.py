"""Running a federation on this machine: ``simulate`` for Python, and what ``sim.py`` calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from fedmoe.errors import FedMoEError
from fedmoe.loading import from_run_config, leaves, load_settings, to_run_config
from fedmoe.settings import Settings
from fedmoe_api.run import Run
from fedmoe_server.planning.plan import plan
from fedmoe_server.rounds.halting import Callback, Interrupted, Paused

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    from data.sampling import Interactions

CLIENT_APP = "fedmoe_client.app:app"
STACKED = "fedmoe_client.stacked.app:train"  # what the vectorized engine calls
_ALONE = Lock()  # Flower and Ray know one run a process: a second thread waits for its turn


def simulate(config: str | Path | None = None, *, callbacks: Sequence[Callback] = (), **settings: Any) -> Run:
    """Run a federation on this machine, leave its run folder, and return it.

    Args:
        config: a YAML file, or the name of a shipped one such as ``"quick"``; None: MovieLens-100K.
        callbacks: each is called after each round with its record (``round``, ``train``, ``validation``, ``best``
            ...). One that returns ``fedmoe.Halt.STOP`` ends the training, and the best model so far is evaluated; one
            that returns ``fedmoe.Halt.PAUSE`` leaves a checkpoint, from which ``Run.resume`` goes on. What a callback
            raises ends the run as failed.
        settings: settings by their keys, or by the last part of a key where that is unique (``num_rounds=50``); whole
            sections as mappings (``model={"dim": 32}``), and classes in place of ``package.module:Class``. A strategy
            or tracker may be a class of a notebook or script; what the clients use must be in a file to be imported.

    Ctrl-C, or a notebook's interrupt, ends the round, leaves a checkpoint and raises KeyboardInterrupt. Runs of several
    threads take turns. Raises FedMoEError for what the user can put right.
    """
    chosen, warnings = load_settings([] if config is None else [str(config)], dict(_flat(settings)))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return Run(federate(planned(chosen), callbacks=callbacks))


def planned(settings: Settings) -> Settings:
    """Check all that can be checked, show the plan, and return the settings with those chosen that were not given."""
    from fedmoe_client.learning.own_client import check_components  # torch takes seconds to import

    return plan(settings, check_components)


def federate(settings: Settings, resume: Path | None = None, callbacks: Sequence[Callback] = ()) -> Path:
    """Run a federation on this machine, print it beside popularity, and return its run folder.

    Raises KeyboardInterrupt, with a checkpoint left behind, where Ctrl-C has asked for it.
    """
    # Torch, Ray and Flower take seconds to import: not for --help, nor for a misspelt key.
    from flwr.serverapp import ServerApp

    from data.registry import load_dataset
    from fedmoe_client.learning.new_items import untrained_metrics
    from fedmoe_server.app import run
    from fedmoe_server.report.report import comparison, write_report
    from fedmoe_server.report.run_folder import add_baseline, new_run_dir, removed_if_empty

    dataset = load_dataset(settings)
    run_dir = resume or new_run_dir(settings, datetime.now())
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        run(grid, from_run_config(context.run_config), run_dir, resume, callbacks=callbacks)

    try:
        with _ALONE, removed_if_empty(run_dir):
            execute(settings, server, dataset.interactions, to_run_config(settings))
    except Paused as paused:
        print(f"{paused}: go on with --resume {run_dir}, or in Python with fedmoe.load({str(run_dir)!r}).resume()")
        if isinstance(paused, Interrupted):
            raise KeyboardInterrupt from None
        return run_dir
    for name, found in untrained_metrics(dataset, settings).items():
        add_baseline(run_dir, name, found)
    print(comparison(run_dir))
    print(f"report: {write_report(run_dir)}")
    return run_dir


def execute(settings: Settings, server: ServerApp, histories: Interactions, run_config: Mapping[str, Any]) -> None:
    """Run a ServerApp on the engine of the settings; each user of the histories is a simulated client."""
    from data.sampling import items_of_a_round
    from simulation.engines import run_simulation

    resources, training = settings.simulation, settings.training
    loads = items_of_a_round(histories.offsets, settings.model.max_seq_len, training.windows, training.max_windows)
    config = {**run_config, "simulated": True}
    run_simulation(resources.engine, server, CLIENT_APP, histories.num_users, config, resources, loads, STACKED)


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings by key: those of a section's mapping one by one, and classes by their names."""
    for key, value in values.items():
        if isinstance(value, Mapping) and any(name.startswith(f"{key}.") for name, _ in leaves()):
            yield from _flat({f"{key}.{inner}": each for inner, each in value.items()})
        else:
            yield key, _named(key, value)


def _named(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_named(key, inner): _named(f"{key}.{inner}", each) for inner, each in value.items()}
    if isinstance(value, list | tuple):
        return [_named(key, each) for each in value]
    if not isinstance(value, type):
        return value
    if value.__module__ == "__main__" and key.split(".")[-1] not in ("strategy", "tracking"):
        raise FedMoEError(f"{key}: {value.__name__} must be in a file of its own, since other processes import it")
    return f"{value.__module__}:{value.__qualname__}"
