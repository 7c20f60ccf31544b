"""Starting Ray quietly, how many hosts fit on it, and which clients each host keeps."""

from __future__ import annotations

import heapq
import logging
import math
import os
import re
import socket
import sys
import warnings
from collections.abc import Mapping
from importlib.machinery import PathFinder
from typing import Any

import numpy as np
import ray
from numpy.typing import ArrayLike, NDArray

from fedmoe.errors import FedMoEError
from fedmoe.settings import SimulationSettings

Pinning = NDArray[np.int32]  # the host of each client, [num_clients]
THREAD_VARIABLES = [
    f"{name}_THREADS" for name in ("OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "NUMEXPR_NUM", "VECLIB_MAXIMUM")
]
# glibc gives the memory of large tensors back after each use and fetches it again, page by page: a fifth of the time of
# a stack of clients. With these bounds (bytes) a process keeps it. Other C libraries ignore them.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
# Ray starts workers at niceness 15, where anything else that runs on the machine starves them, and keeps what it knows
# of each call for a dashboard that there is not: memory that grows with the rounds.
SYSTEM = {"worker_niceness": 0, "task_events_report_interval_ms": 0}

# Characters of the folder for temporary files: Ray adds 69, and a socket's name may have 107.
LONGEST_FOLDER = 36


def worker_environment(resources: SimulationSettings) -> dict[str, str]:
    """Environment of a process that executes clients.

    As many threads as a client has CPUs, at least one; an allocator that keeps its memory; this process's module
    search path, because the client app is imported by name; and no GPU to be seen where a client has none of it. (Ray
    hides GPUs by itself or does not, depending on who has started it, also from a host that shares what is left after
    a machine has gone.)
    """
    gpus = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"} if resources.client_gpus else {"CUDA_VISIBLE_DEVICES": ""}
    threads = dict.fromkeys(THREAD_VARIABLES, str(max(1, int(resources.client_cpus))))
    return ALLOCATOR | gpus | threads | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def start_ray(address: str | None = None, environment: dict[str, str] | None = None) -> bool:
    """Start Ray on this machine, or join the cluster at ``address``, unless this process is connected already.

    ``address``: host:port, or ``auto`` for the cluster that runs on this machine.
    ``environment``: variables of every worker process. Returns whether this call connected, in which case the
    caller has to call ``ray.shutdown()``. Raises FedMoEError if the cluster does not answer, or Ray's processes, which
    search the working folder first, would take a file there for our packages.
    """
    for name in ("fedmoe", "simulation"):  # what they import before our packages come first
        found = PathFinder.find_spec(name, [os.getcwd()])
        if found is not None and found.origin not in (None, sys.modules[name].__file__):
            raise FedMoEError(f"{found.origin} hides FedMoE's package from Ray: rename it, or start in another folder")
    if ray.is_initialized():
        return False
    if address and address != "auto":
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Silences a notice that Ray prints on machines without a GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": environment} if environment else None,
                _system_config=None if address else SYSTEM,
                _temp_dir=None if address else _temporary_folder(),
            )
        except Exception as error:  # Ray raises a bare one where its processes take too long to start
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise FedMoEError(f"cannot start {where}: {' '.join(str(error).split())}") from error
    return True


def _temporary_folder() -> str | None:
    """Return where Ray's sockets are to lie; None: where Ray puts them by itself, if their names are not too long."""
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or ""
    return f"/tmp/ray-{os.getuid()}" if len(named) > LONGEST_FOLDER else None


def _check_reachable(address: str) -> None:
    # Ray itself tries for minutes, and then ends the process.
    match = re.fullmatch(r"(?:ray://)?\[?([^\[\]]+)\]?:(\d+)", address)
    if match is None:
        raise FedMoEError(
            f"the Ray cluster's address '{address}' is no address: write host:port, or auto for that of this machine"
        )
    try:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise FedMoEError(f"cannot reach the Ray cluster at {address}: {error}") from error


def host_capacity(resources: SimulationSettings) -> int:
    """Return how many clients with these resources fit on the cluster at once (0: none does)."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(_node_capacity(node["Resources"], resources) for node in nodes if node["Alive"])


def _node_capacity(has: Mapping[str, float], resources: SimulationSettings) -> int:
    cpus, gpus = resources.client_cpus, resources.client_gpus
    fits = math.floor(has.get("CPU", 0.0) / cpus + 1e-9)
    if gpus > 0:
        # A fraction of a GPU is never put together from two of them.
        there = has.get("GPU", 0.0)
        fits = min(fits, math.floor((there * math.floor(1 / gpus + 1e-9) if gpus < 1 else there / gpus) + 1e-9))
    return fits


def number_of_hosts(resources: SimulationSettings, num_clients: int) -> int:
    """Return how many hosts to start: those asked for, or (0) as many as fit, never more than clients.

    Raises FedMoEError if none fits, or fewer than asked for: Ray would wait for the resources for ever.
    """
    asked, cpus, gpus = resources.hosts, resources.client_cpus, resources.client_gpus
    capacity = host_capacity(resources)
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    have = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
    if capacity == 0:
        raise FedMoEError(
            f"no client fits: simulation.client_cpus {cpus:g} and simulation.client_gpus {gpus:g}, "
            f"the machine has {have}: lower them"
        )
    if asked > capacity:
        raise FedMoEError(
            f"simulation.hosts {asked}: only {capacity} fit with client_cpus {cpus:g} and client_gpus "
            f"{gpus:g}, the machine has {have}: lower hosts, client_cpus or client_gpus"
        )
    return min(asked or capacity, num_clients)


def pin_clients(num_clients: int, hosts: int, loads: ArrayLike | None = None) -> Pinning:
    """Return the host ``0..hosts-1`` of each client, int32 ``[num_clients]``, the same for the whole run.

    ``loads``: what a call of each client costs, in any unit, finite and not negative, ``[num_clients]``. Clients are
    dealt out from the most expensive one down, each to the host with the least so far (longest processing time first:
    Graham 1969, at most a third above the best makespan). Without loads: client id modulo hosts.
    Raises FedMoEError for loads of another length, or that cannot be costs.
    """
    if loads is None:
        return (np.arange(num_clients) % hosts).astype(np.int32)
    costs = np.asarray(loads, dtype=np.float64)
    if costs.shape != (num_clients,):
        raise FedMoEError(f"loads have shape {list(costs.shape)}: give one number for each of {num_clients} clients")
    if not (np.isfinite(costs).all() and (costs >= 0).all()):
        raise FedMoEError("loads must be finite and not negative: give what a call of each client costs")
    order = np.argsort(-costs, kind="stable")
    pinning = np.empty(num_clients, dtype=np.int32)
    # (cost so far, number of clients, host): clients that cost nothing are spread as well.
    heap = [(0.0, 0, host) for host in range(hosts)]
    for client, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        total, count, host = heap[0]
        pinning[client] = host
        heapq.heapreplace(heap, (total + cost, count + 1, host))
    return pinning
