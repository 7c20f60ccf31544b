"""Running a ServerApp against one of the engines."""

from __future__ import annotations

import gc
import logging

import ray
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import ArrayLike

from fedmoe.errors import FedMoEError
from fedmoe.settings import SimulationSettings
from simulation.client_apps import ConfiguredClient, load_client_app, load_named
from simulation.flower_runtime import RunConfig, begin_run, quiet, run_flower_runtime, server_context
from simulation.ray.cluster import number_of_hosts, start_ray, worker_environment
from simulation.ray.grid import RayGrid


def run_simulation(
    engine: str,
    server_app: ServerApp,
    client_app: str | ClientApp,
    num_clients: int,
    run_config: RunConfig,
    resources: SimulationSettings,
    loads: ArrayLike | None = None,
    stacked: str | None = None,
) -> None:
    """Run a ServerApp to its end with ``num_clients`` simulated clients.

    Args:
        engine: ``"ray"``, ``"vectorized"`` (the same, with train messages executed in stacks) or ``"flower"``.
        client_app: ``"module:attribute"`` or an object.
        run_config: in the context of the server and of every client.
        loads: what a call of each client costs, ``[num_clients]``, see ``RayGrid``; Flower's runtime has no use for it.
        stacked: ``"module:attribute"`` of the function that executes stacks, see ``RayGrid``.

    What the ServerApp raises comes out of this call. Raises FedMoEError for an unknown engine, resources that the
    machine does not have, or a client app that cannot be loaded.
    """
    if engine not in ("ray", "vectorized", "flower"):
        raise FedMoEError(f"simulation.engine '{engine}' is not known: use 'ray', 'vectorized' or 'flower'")
    if engine == "vectorized":
        if stacked is None:
            raise FedMoEError(f"simulation.engine 'vectorized': {client_app} has no function for stacks: use 'ray'")
        load_named(stacked, "stacked client function")  # a mistake should end the run, not slow it down
    with quiet(logging.WARNING):
        if engine == "flower":
            _run_flower(server_app, client_app, num_clients, run_config, resources)
            return
        gc.freeze()  # what was imported stays, and is not to be searched for garbage time and again
        stacked = stacked if engine == "vectorized" else None
        with RayGrid(client_app, num_clients, run_config, resources, loads=loads, stacked=stacked) as grid:
            server_app(grid=grid, context=server_context(grid.run, run_config))


def _run_flower(
    server_app: ServerApp,
    client_app: str | ClientApp,
    num_clients: int,
    run_config: RunConfig,
    resources: SimulationSettings,
) -> None:
    if isinstance(client_app, str):
        load_client_app(client_app)  # a mistake should end the run, not fail each client
    raised: list[BaseException] = []
    watched = ServerApp()

    @watched.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower runs this in a thread of its own, and what it raises there would come out as something else.
        try:
            server_app(grid=grid, context=context)
        except BaseException as error:  # raised again below, in the caller's thread
            raised.append(error)

    owns_ray = start_ray(resources.ray_address, worker_environment(resources))
    try:
        number_of_hosts(resources.model_copy(update={"hosts": 0}), num_clients)
        run, client = begin_run(), ConfiguredClient(client_app, run_config)
        run_flower_runtime(watched, client, num_clients, server_context(run, run_config), run, resources)
    finally:
        if owns_ray:
            ray.shutdown()
    if raised:
        raise raised[0]
