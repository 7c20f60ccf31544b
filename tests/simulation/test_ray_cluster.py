"""How many hosts fit on a machine, what they find in their environment, and which clients each keeps."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.errors import FedMoEError
from fedmoe.settings import SimulationSettings
from simulation.ray.cluster import _node_capacity, pin_clients, start_ray, worker_environment


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
    resources = SimulationSettings(client_cpus=client_cpus, client_gpus=client_gpus)
    assert _node_capacity({"CPU": cpus, "GPU": gpus}, resources) == fits


@pytest.mark.parametrize(("client_cpus", "threads"), [(0.25, "1"), (1, "1"), (2.5, "2")])
def test_threads(client_cpus: float, threads: str) -> None:
    environment = worker_environment(SimulationSettings(client_cpus=client_cpus))
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == threads
    assert "" not in environment["PYTHONPATH"].split(os.pathsep)
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) > int(environment["MALLOC_MMAP_THRESHOLD_"]) > 2**20


def test_a_gpu_is_seen_where_a_client_has_a_part_of_it() -> None:
    assert worker_environment(SimulationSettings())["CUDA_VISIBLE_DEVICES"] == ""
    environment = worker_environment(SimulationSettings(client_gpus=0.25))
    assert "CUDA_VISIBLE_DEVICES" not in environment  # Ray says which one
    assert environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "0"


def test_without_loads_it_is_the_id_modulo_hosts() -> None:
    assert pin_clients(5, 2).tolist() == [0, 1, 0, 1, 0]


def test_by_hand() -> None:
    # 7 | 5; then 4 to the second (9), 3 to the first (10), 1 to the second (10).
    assert pin_clients(5, 2, [5, 3, 7, 1, 4]).tolist() == [1, 0, 0, 1, 1]
    assert pin_clients(4, 2, [0, 0, 0, 0]).tolist() == [0, 1, 0, 1]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 7))
def test_hosts_differ_by_one_client_at_most(loads: list[int], hosts: int) -> None:
    pinning = pin_clients(len(loads), hosts, loads)
    assert ((pinning >= 0) & (pinning < hosts)).all()
    sums = np.bincount(pinning, weights=loads, minlength=hosts)
    assert sums.max() - sums.min() <= max(loads)


def test_a_million_clients_take_no_time() -> None:
    loads = np.random.default_rng(0).pareto(1.5, 1_000_000) * 20
    began = time.process_time()
    pinning = pin_clients(len(loads), 4, loads)
    assert time.process_time() - began < 5  # about a half second on an idle machine
    sums = np.bincount(pinning, weights=loads)
    assert sums.max() / sums.min() < 1.0001


@pytest.mark.parametrize("loads", [[1, 2], [1, 2, -1], [1, 2, np.nan], [[1, 2, 3]]])
def test_what_is_no_load(loads: object) -> None:
    with pytest.raises(FedMoEError, match="loads"):
        pin_clients(3, 2, loads)  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "moved"), [(4, False), (36, False), (37, True), (48, True)])
def test_a_long_folder_for_temporary_files_is_not_ray_s(
    length: int, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's sockets lie under it, and a socket's name has at most 107 characters."""
    given: dict[str, object] = {}
    monkeypatch.setattr(ray, "init", lambda **words: given.update(words))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "x" * (length - 1))
    start_ray()
    assert (given["_temp_dir"] is not None) == moved
    longest = f"{given['_temp_dir'] or os.environ['TMPDIR'] + '/ray'}/session_2026-11-29_14-41-59_916268_4194304"
    assert len(f"{longest}/sockets/plasma_store") <= 107


def test_clients_have_the_priority_of_what_started_them_and_calls_are_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **words: asked.update(words))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert start_ray()
    assert asked["_system_config"] == {"worker_niceness": 0, "task_events_report_interval_ms": 0}


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**words: object) -> None:
        raise Exception("The current node timed out\nduring startup.")  # noqa: TRY002 (as Ray does)

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(FedMoEError, match=r"^cannot start Ray on this machine: The current node timed out during"):
        start_ray()
