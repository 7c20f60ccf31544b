"""How many hosts fit on a machine, and what they find in their environment."""

from __future__ import annotations

import os

import pytest

from simulation.ray.cluster import _node_capacity, worker_environment


@pytest.mark.parametrize(
    ("cpus", "gpus", "client_cpus", "client_gpus", "fits"),
    [
        (2, 0, 1, 0, 2),
        (2, 0, 0.5, 0, 4),
        (2, 0, 1.5, 0, 1),
        (2, 0, 3, 0, 0),
        (1.5, 0, 0.1, 0, 15),
        (8, 0, 1, 0.5, 0),
        (8, 2, 1, 0.5, 4),
        (8, 2, 1, 0.4, 4),  # two of 0.4 on each GPU; the two rests of 0.2 do not make a third
        (3, 2, 1, 0.1, 3),
        (8, 3, 1, 2, 1),
    ],
)
def test_node_capacity(cpus: float, gpus: float, client_cpus: float, client_gpus: float, fits: int) -> None:
    assert _node_capacity({"CPU": cpus, "GPU": gpus}, client_cpus, client_gpus) == fits


@pytest.mark.parametrize(("client_cpus", "threads"), [(0.25, "1"), (1, "1"), (2.5, "2")])
def test_threads(client_cpus: float, threads: str) -> None:
    environment = worker_environment(client_cpus, 0)
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == threads
    assert "" not in environment["PYTHONPATH"].split(os.pathsep)
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) > int(environment["MALLOC_MMAP_THRESHOLD_"]) > 2**20


def test_a_gpu_is_seen_where_a_client_has_a_part_of_it() -> None:
    assert worker_environment(1, 0)["CUDA_VISIBLE_DEVICES"] == ""
    environment = worker_environment(1, 0.25)
    assert "CUDA_VISIBLE_DEVICES" not in environment  # Ray says which one
    assert environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "0"
