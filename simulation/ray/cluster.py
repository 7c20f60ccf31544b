"""Starting Ray quietly, and how many hosts fit on it."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
import warnings
from typing import Any

import ray

from fedmoe.errors import FedMoEError

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# glibc gives the memory of large tensors back after each use and fetches it again, page by page: a fifth of the time of
# a stack of clients. With these bounds (bytes) a process keeps it. Other C libraries ignore them.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


def worker_environment(client_cpus: float, client_gpus: float) -> dict[str, str]:
    """Environment of a process that executes clients.

    As many threads as a client has CPUs, at least one; an allocator that keeps its memory; this process's module
    search path, because the client app is imported by name; and no GPU to be seen where a client has none of it. (Ray
    hides GPUs by itself or does not, depending on who has started it, also from a host that shares what is left after
    a machine has gone.)
    """
    environment = ALLOCATOR | dict.fromkeys(THREAD_VARIABLES, str(max(1, int(client_cpus))))
    environment |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"} if client_gpus else {"CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return environment


def start_ray(address: str | None = None, environment: dict[str, str] | None = None) -> bool:
    """Start Ray on this machine, or join the cluster at ``address``, unless this process is connected already.

    ``address``: host:port, or ``auto`` for the cluster that runs on this machine.
    ``environment``: variables of every worker process. Returns whether this call connected, in which case the
    caller has to call ``ray.shutdown()``. Raises FedMoEError if the cluster does not answer.
    """
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
            )
        except (ConnectionError, TimeoutError, ValueError) as error:
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise FedMoEError(f"cannot start {where}: {' '.join(str(error).split())}") from error
    return True


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


def host_capacity(client_cpus: float, client_gpus: float) -> int:
    """Return how many clients with these resources fit on the cluster at once (0: none does)."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(_node_capacity(node["Resources"], client_cpus, client_gpus) for node in nodes if node["Alive"])


def _node_capacity(resources: dict[str, float], client_cpus: float, client_gpus: float) -> int:
    fits: int = math.floor(resources.get("CPU", 0.0) / client_cpus + 1e-9)
    if client_gpus > 0:
        gpus = resources.get("GPU", 0.0)
        # A fraction of a GPU is never put together from two of them.
        per_gpu = gpus * math.floor(1 / client_gpus + 1e-9) if client_gpus < 1 else gpus / client_gpus
        fits = min(fits, math.floor(per_gpu + 1e-9))
    return fits


def number_of_hosts(asked: int, num_clients: int, client_cpus: float, client_gpus: float) -> int:
    """Return how many hosts to start: those asked for, or (0) as many as fit, never more than clients.

    Raises FedMoEError if none fits, or fewer than asked for: Ray would wait for the resources for ever.
    """
    capacity = host_capacity(client_cpus, client_gpus)
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    have = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
    if capacity == 0:
        raise FedMoEError(
            f"no client fits: simulation.client_cpus {client_cpus:g} and simulation.client_gpus {client_gpus:g}, "
            f"the machine has {have}: lower them"
        )
    if asked > capacity:
        raise FedMoEError(
            f"simulation.hosts {asked}: only {capacity} fit with client_cpus {client_cpus:g} and client_gpus "
            f"{client_gpus:g}, the machine has {have}: lower hosts, client_cpus or client_gpus"
        )
    return min(asked or capacity, num_clients)
