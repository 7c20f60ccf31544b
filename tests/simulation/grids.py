"""Grids of ten small clients, and what tests ask of them."""

from __future__ import annotations

import simulation_apps as apps
from flwr.app import Message
from flwr.clientapp import ClientApp
from numpy.typing import ArrayLike

from fedmoe.settings import SimulationSettings
from simulation import RayGrid
from simulation.flower_runtime import FIRST_NODE_ID

CLIENTS = 10


def new_grid(
    hosts: int = 2,
    app: str | ClientApp = "simulation_apps:app",
    *,
    loads: ArrayLike | None = None,
    stacked: str | None = None,
    state_memory: int = 512,
) -> RayGrid:
    """Start a grid on the Ray that runs. The hosts' memory for private state is in MiB."""
    resources = SimulationSettings(hosts=hosts, client_cpus=0.25).model_copy(update={"state_memory": state_memory})
    return RayGrid(app, CLIENTS, {"colour": "blue"}, resources, loads=loads, stacked=stacked)


def nodes(*client_ids: int) -> list[int]:
    return [FIRST_NODE_ID + client_id for client_id in client_ids]


def everyone() -> list[int]:
    return nodes(*range(CLIENTS))


def send(
    grid: RayGrid, to: list[int], kind: str = "train", timeout: float | None = None, **config: object
) -> list[Message]:
    return list(grid.send_and_receive(apps.requests(to, kind, **config), timeout=timeout))


def merge(grid: RayGrid, **config: object) -> list[bytes]:
    """One round whose replies are merged; the sums of the hosts."""
    reduced = grid.send_and_reduce(apps.requests(list(grid.get_node_ids()), **config), apps.Summing)
    return [reply.content["arrays"]["w"].data for reply in reduced]


def told(grid: RayGrid, key: str) -> list[int]:
    """What clients say of themselves."""
    replies = send(grid, list(grid.get_node_ids()), "evaluate")
    return [int(reply.content["config"][key]) for reply in replies]


def visits(grid: RayGrid) -> list[int]:
    return told(grid, "visits")
