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
from simulation.client_call import ConfiguredClient, RunConfig, load_client_app, load_named
from simulation.flower_runtime import begin_run, quiet, run_flower_runtime, server_context
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
        server_app: the server.
        client_app: ``"module:attribute"`` or an object.
        num_clients: clients 0, 1, 2 ...
        run_config: in the context of the server and of every client.
        resources: what the engine may use.
        loads: what a call of each client costs, ``[num_clients]``, see ``RayGrid``; Flower's runtime has no use for it.
        stacked: ``"module:attribute"`` of the function that executes stacks, see ``RayGrid``.

    What the ServerApp raises comes out of this call. Raises FedMoEError for an unknown engine, resources that the
    machine does not have, or a client app that cannot be loaded.
    """
    if engine == "ray":
        _run_ray(server_app, client_app, num_clients, run_config, resources, loads, None)
    elif engine == "vectorized":
        if stacked is None:
            raise FedMoEError(f"simulation.engine 'vectorized': {client_app} has no function for stacks: use 'ray'")
        load_named(stacked, "stacked client function")  # a mistake should end the run, not slow it down
        _run_ray(server_app, client_app, num_clients, run_config, resources, loads, stacked)
    elif engine == "flower":
        _run_flower(server_app, client_app, num_clients, run_config, resources)
    else:
        raise FedMoEError(f"simulation.engine '{engine}' is not known: use 'ray', 'vectorized' or 'flower'")


def _run_ray(
    server_app: ServerApp,
    client_app: str | ClientApp,
    num_clients: int,
    run_config: RunConfig,
    resources: SimulationSettings,
    loads: ArrayLike | None,
    stacked: str | None,
) -> None:
    gc.freeze()  # what was imported stays, and is not to be searched for garbage time and again
    with (
        quiet(logging.WARNING),
        RayGrid(
            client_app,
            num_clients,
            run_config,
            hosts=resources.hosts,
            client_cpus=resources.client_cpus,
            client_gpus=resources.client_gpus,
            ray_address=resources.ray_address,
            loads=loads,
            stacked=stacked,
            state_memory=resources.state_memory << 20,
        ) as grid,
    ):
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

    owns_ray = start_ray(resources.ray_address, worker_environment(resources.client_cpus, resources.client_gpus))
    try:
        number_of_hosts(0, num_clients, resources.client_cpus, resources.client_gpus)
        run = begin_run()
        with quiet(logging.WARNING):
            run_flower_runtime(
                watched,
                ConfiguredClient(client_app, run_config),
                num_clients,
                server_context(run, run_config),
                run,
                resources.client_cpus,
                resources.client_gpus,
            )
    finally:
        if owns_ray:
            ray.shutdown()
    if raised:
        raise raised[0]
