"""Which host keeps which client: balanced by what a client costs, the same for the whole run."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from errors import FedMoEError

Pinning = NDArray[np.int32]


def pin_clients(num_clients: int, hosts: int, loads: ArrayLike | None = None) -> Pinning:
    """Return the host ``0..hosts-1`` of each client, int32 ``[num_clients]``.

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
    pinning[order] = _deal_out(costs[order].tolist(), hosts)
    return pinning


def _deal_out(costs: Sequence[float], hosts: int) -> list[int]:
    # A load is (sum so far, number of clients, host): clients that cost nothing are spread as well.
    heap = [(0.0, 0, host) for host in range(hosts)]
    dealt = []
    for cost in costs:
        total, count, host = heap[0]
        dealt.append(host)
        heapq.heapreplace(heap, (total + cost, count + 1, host))
    return dealt
