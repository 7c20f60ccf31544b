"""Which host keeps which client, the same for the whole run; and which one executes it in an exchange.

Both are balanced by what a client costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmoe.errors import FedMoEError

Pinning = NDArray[np.int32]
EVEN = 0.02  # difference between two hosts' work, as a share of the mean, that is not worth moving a client for


def pin_clients(num_clients: int, hosts: int, loads: ArrayLike | None = None) -> Pinning:
    """Return the host ``0..hosts-1`` of each client, int32 ``[num_clients]``.

    ``loads``: what a call of each client costs, in any unit, finite and not negative, ``[num_clients]``. Clients are
    dealt out from the most expensive one down, each to the host with the least so far (longest processing time first:
    Graham 1969, at most a third above the best makespan). Without loads: client id modulo hosts.
    Raises FedMoEError for loads of another length, or that cannot be costs.
    """
    if loads is None:
        return (np.arange(num_clients) % hosts).astype(np.int32)
    costs = costs_of(num_clients, loads)
    order = np.argsort(-costs, kind="stable")
    pinning = np.empty(num_clients, dtype=np.int32)
    pinning[order] = _deal_out(costs[order].tolist(), hosts)
    return pinning


def costs_of(num_clients: int, loads: ArrayLike | None) -> NDArray[np.float64]:
    """Return what a call of each client costs, float64 ``[num_clients]``; without loads all cost the same.

    Raises FedMoEError for loads of another length, or that cannot be costs.
    """
    if loads is None:
        return np.ones(num_clients)
    costs = np.asarray(loads, dtype=np.float64)
    if costs.shape != (num_clients,):
        raise FedMoEError(f"loads have shape {list(costs.shape)}: give one number for each of {num_clients} clients")
    if not (np.isfinite(costs).all() and (costs >= 0).all()):
        raise FedMoEError("loads must be finite and not negative: give what a call of each client costs")
    return costs


def even_out(homes: Pinning, costs: NDArray[np.float64], hosts: int) -> Pinning:
    """Return the host that executes each of some clients: its home, but for the few whose moving evens the work out.

    homes: int32 ``[clients]``; costs: as ``loads`` above, ``[clients]``. As long as it helps, the host with the most to
    do lends the one with the least that client of its own whose cost is nearest to half of the difference.
    """
    places = homes.copy()
    work = np.bincount(homes, weights=costs, minlength=hosts)
    while True:
        most, least = int(work.argmax()), int(work.argmin())
        difference = work[most] - work[least]
        at_home = np.flatnonzero((places == most) & (homes == most))
        if difference <= EVEN * work.mean() or not len(at_home):
            return places
        chosen = at_home[np.abs(costs[at_home] - difference / 2).argmin()]
        if not 0 < costs[chosen] < difference:
            return places
        places[chosen] = least
        work[most] -= costs[chosen]
        work[least] += costs[chosen]


def _deal_out(costs: Sequence[float], hosts: int) -> list[int]:
    # A load is (sum so far, number of clients, host): clients that cost nothing are spread as well.
    heap = [(0.0, 0, host) for host in range(hosts)]
    dealt = []
    for cost in costs:
        total, count, host = heap[0]
        dealt.append(host)
        heapq.heapreplace(heap, (total + cost, count + 1, host))
    return dealt
