"""One grid for all tests of a module, on the session's Ray."""

from __future__ import annotations

from collections.abc import Iterator

import grids
import pytest
import ray

from simulation import RayGrid
from simulation.ray.client_files import CLIENTS_FILE, write_clients
from simulation.ray.cluster import start_ray


@pytest.fixture(scope="module")
def connected(ray_address: str) -> Iterator[None]:
    """Grids that are started without an address are on the session's Ray."""
    started = start_ray(ray_address)
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="module")
def running(connected: None) -> Iterator[RayGrid]:
    """A grid of two hosts."""
    with grids.new_grid() as grid:
        yield grid


@pytest.fixture
def grid(running: RayGrid, tmp_path_factory: pytest.TempPathFactory) -> RayGrid:
    """A grid of two hosts whose clients have no private state."""
    folder = tmp_path_factory.mktemp("nobody")
    write_clients(folder / CLIENTS_FILE, grids.CLIENTS, [])
    running.load_clients(folder)
    return running
