"""Joining a Ray cluster that another process has started."""

from __future__ import annotations

import subprocess
import sys

import pytest
import ray
import simulation_apps as apps

from simulation.ray.grid import RayGrid

CLUSTER = """
import logging, ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


def test_a_grid_joins_a_cluster_and_leaves_it_running(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        for given in (address, "auto"):
            with RayGrid("simulation_apps:app", 3, {"colour": "blue"}, ray_address=given) as grid:
                replies = grid.send_and_receive(apps.requests(list(grid.get_node_ids()), "evaluate"))
                assert [reply.content["config"]["client-id"] for reply in replies] == [0, 1, 2]
            assert not ray.is_initialized()
            assert cluster.poll() is None
            monkeypatch.setenv("RAY_ADDRESS", address)  # which of several clusters on this machine "auto" means
        cluster.communicate("\n")
