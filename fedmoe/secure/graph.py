"""Who masks with whom: a ring in an order that follows from the round's keys, and how many clients must be left.

Bell et al. 2020: each client shares secrets and masks with its neighbours alone. They are the ``reach`` members before
it and the ``reach`` members after it on the ring (a Harary graph over a random permutation). One condition on the ring
gives all that the protocol needs, and every client checks it: any ``reach`` members in a row hold at least ``needed``
that are still there, while no ``reach`` in a row hold as many as ``needed`` that are in league with the server. Then

* the honest clients that are left hang together, since between two of them are never ``reach`` members without a third;
* a secret can be put together: at least ``2 * needed`` of its holders are left, and ``threshold = 2 * needed - 1``;
* those in league with the server, at most ``2 * (needed - 1)`` of the holders, cannot put it together by themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import comb, floor

from fedmoe.errors import FedMoEError
from fedmoe.secure.messages import Terms
from fedmoe.secure.primitives import encoded

SECURITY_BITS = 80  # a server may try other keys of its accomplices until it likes the graph; not 2^80 times
FAILURE_BITS = 20  # a sum with as many dropouts as the terms allow fails once in 2^20


@dataclass(frozen=True)
class Plan:
    """What a sum over ``members`` clients needs.

    Attributes:
        reach: neighbours on either side of the ring; None: everyone is everyone's neighbour.
        needed: of any ``reach`` members in a row, those who must be left; 0 in a complete graph.
        threshold: shares that give a secret.
        quorum: signatures that no two different sets of survivors can both have.
        least: clients that must be left in each phase.
    """

    members: int
    reach: int | None
    needed: int
    threshold: int
    quorum: int
    least: int


def plan(members: int, terms: Terms) -> Plan:
    """Return the plan of a sum. Raises FedMoEError if the terms cannot be kept with so many members.

    A complete graph needs all but the dropouts for everything, and no luck. Where a sparse graph has at most half its
    edges, that graph is taken.
    """
    if not (0 <= terms.dropouts < 1 and 0 <= terms.corrupt < 1):
        raise FedMoEError(f"shares of dropouts and of corrupt clients are from 0 to below 1, not {terms}")
    gone, corrupt = floor(terms.dropouts * members), floor(terms.corrupt * members)
    quorum = (members + corrupt) // 2 + 1
    if members - gone < quorum:
        raise FedMoEError(
            f"{members} clients cannot sum securely if {gone} may drop out and {corrupt} may be in league with the "
            f"server: at least {quorum} must be left to agree on one sum; lower either share"
        )
    least = max(members - gone, terms.minimum)
    ring = _sparse(members, gone, corrupt)
    if ring is None:
        return Plan(members, None, 0, members - gone, quorum, least)
    reach, needed = ring
    return Plan(members, reach, needed, 2 * needed - 1, quorum, least)


@lru_cache(maxsize=256)
def _sparse(members: int, gone: int, corrupt: int) -> tuple[int, int] | None:
    """Return the smallest ``reach`` and its ``needed``; None if the graph would have more than half of all edges."""
    for reach in range(1, members // 4 + 1):
        needed = _more_than(members, corrupt, reach, SECURITY_BITS)
        if needed <= reach and _more_than(members, gone, reach, FAILURE_BITS) <= reach - needed + 1:
            return reach, needed
    return None


def _more_than(members: int, marked: int, reach: int, bits: int) -> int:
    """Return the smallest number that the marked among ``reach`` in a row reach nowhere, but once in ``2**bits``.

    The marked are spread at random: their number in one stretch is hypergeometric, and there are ``members`` stretches.
    """
    allowed, seen = comb(members, reach), 0
    for count in range(min(marked, reach), -1, -1):
        seen += comb(marked, count) * comb(members - marked, reach - count)
        if members * seen << bits > allowed:
            return count + 1
    return 0


class Ring:
    """The graph of one sum."""

    def __init__(self, clients: Iterable[int], digest: bytes, plan: Plan) -> None:
        """digest: of the members' keys, see ``Members.digest``."""
        self.plan = plan
        self.order = sorted(clients, key=lambda client: sha256(encoded("ring", digest, client)).digest())
        self.place = {client: place for place, client in enumerate(self.order)}

    @property
    def complete(self) -> bool:
        """Whether everyone is everyone's neighbour."""
        return self.plan.reach is None

    def neighbours(self, client: int) -> list[int]:
        """Return the clients with which one shares secrets and masks."""
        reach, place = self.plan.reach, self.place[client]
        if reach is None:
            return [other for other in self.order if other != client]
        size = len(self.order)
        return [self.order[(place + step) % size] for step in range(-reach, reach + 1) if step]

    def holders(self, client: int) -> dict[int, int]:
        """Return who holds shares of a client's secrets, itself included -> the point of its share."""
        return {holder: self.place[holder] + 1 for holder in (*self.neighbours(client), client)}

    def shortfall(self, left: Collection[int]) -> str | None:
        """Return why the clients that are left are too few for the sum; None if they are enough."""
        present = set(left)
        if len(present) < self.plan.least:
            return f"{len(present)} of {self.plan.members} clients are left, and {self.plan.least} are needed"
        reach, size = self.plan.reach, len(self.order)
        if reach is None:
            return None
        here = [client in present for client in self.order]
        in_a_row = sum(here[:reach])
        for start in range(size):
            if in_a_row < self.plan.needed:
                return f"{in_a_row} of {reach} clients in a row of the graph are left, {self.plan.needed} are needed"
            in_a_row += here[(start + reach) % size] - here[start]
        return None
