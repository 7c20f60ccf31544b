"""Joining a Ray cluster that another process has started."""

from __future__ import annotations

import subprocess

import pytest
import ray
from grids import told

from fedmoe.settings import SimulationSettings
from simulation.ray.grid import RayGrid


@pytest.mark.parametrize("where", ["address", "auto"])
def test_a_grid_joins_a_cluster_and_leaves_it_running(
    ray_process: subprocess.Popen[str], ray_address: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "auto":
        monkeypatch.setenv("RAY_ADDRESS", ray_address)  # which of several clusters on this machine "auto" means
    resources = SimulationSettings(ray_address="auto" if where == "auto" else ray_address, client_cpus=2)
    with RayGrid("simulation_apps:app", 3, {"colour": "blue"}, resources) as grid:
        assert told(grid, "client-id") == [0, 1, 2]
    assert not ray.is_initialized()
    assert ray_process.poll() is None
