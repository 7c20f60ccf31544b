"""A Ray cluster of two unequal machines: hosts on both, and the loss of one in the middle of a round."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import ray
from grids import merge, told, visits
from ray.cluster_utils import Cluster

from simulation.ray.grid import RayGrid

CLIENTS = 12


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_machine_that_dies_in_the_middle_of_a_round(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    with RayGrid("simulation_apps:app", CLIENTS, {"colour": "blue"}) as grid:
        plain = merge(grid)
        assert len(Counter(told(grid, "process"))) == 3, "a host for each CPU"
        killer = threading.Timer(0.5, lambda: cluster.remove_node(second, allow_graceful=False))
        killer.start()
        disturbed = merge(grid, sleep=[0, 1, 2], seconds=2.5)  # one client of each host: all are at work
        killer.join()
        assert caplog.text.count("died and was started again") >= 2, "both of its hosts"
        assert disturbed == plain
        assert visits(grid) == [2] * CLIENTS
