"""The server's side of a secure sum: it passes on keys and shares, adds masked vectors and takes the masks off.

Clients that vanish, or whose answers are wrong, are left out; with fewer than the terms allow the sum fails as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from fedmoe.secure import shamir
from fedmoe.secure.failures import CorruptShares, TooFewClients
from fedmoe.secure.graph import Ring
from fedmoe.secure.masks import own_mask, pair_mask, promise_of
from fedmoe.secure.messages import (
    Agreement,
    Delivery,
    Invitation,
    Masked,
    Members,
    Revealed,
    Session,
    Shares,
    SignedKeys,
    Survivors,
    Terms,
    Unmasking,
)
from fedmoe.secure.notes import ring_of
from fedmoe.secure.primitives import Words, in_ring, largest, public_of, signed_by

Answer = TypeVar("Answer", SignedKeys, Shares, Agreement, Revealed)


class SecureSum:
    """One sum. Its methods are called once each, in their order, except ``add``, and ``expect`` before that.

    Args:
        session: which sum it is.
        terms: what it promises.
        admitted: client -> the line of its admitted public key.

    Attributes:
        admitted: as given.
        refused: client -> why its answer was not taken.
    """

    def __init__(self, session: Session, terms: Terms, admitted: Mapping[int, str]) -> None:
        self._session = session
        self._terms = terms
        self.admitted = admitted
        self._bits = 0
        self._asked = b""
        self._members = Members(session, ())
        self._ring: Ring
        self._sharing: set[int] = set()
        self._total: Words | None = None
        self._added: set[int] = set()
        self._agreed: dict[int, bytes] = {}  # client -> its agreement to the sum of all who have shared
        self.refused: dict[int, str] = {}

    def invitation(self) -> Invitation:
        """Return the question of phase 1."""
        return Invitation(self._session, self._terms)

    def members(self, answers: Iterable[SignedKeys]) -> Members:
        """Take the answers of phase 1, and return the question of phase 2.

        Raises TooFewClients, or FedMoEError if the terms cannot be kept with so many clients.
        """
        invitation = self.invitation()

        def problem(keys: SignedKeys) -> str | None:
            line = self.admitted.get(keys.client)
            if line is None:
                return "no admitted key"
            good = signed_by(line, keys.signature, keys.content(invitation))
            return None if good else "keys that are not signed with the admitted key for this sum"

        taken = self._taken(answers, problem)
        self._enough("sent keys", len(taken), self._terms.minimum)
        self._members = Members(self._session, tuple(sorted(taken.values(), key=lambda keys: keys.client)))
        self._ring = ring_of(self._members, self._terms)
        self._left("sent keys", taken)
        return self._members

    def deliveries(self, answers: Iterable[Shares]) -> dict[int, Delivery]:
        """Take the answers of phase 2, and return client -> the question of phase 3. Raises TooFewClients."""

        def problem(shares: Shares) -> str | None:
            if shares.client not in self._ring.place:
                return "it is no member"
            meant = set(shares.sealed) == set(self._ring.neighbours(shares.client))
            return None if meant else "shares for others than its neighbours"

        taken = self._taken(answers, problem)
        self._left("shared their secrets", taken)
        self._sharing = set(taken)
        listed = tuple(sorted(taken))
        return {
            client: Delivery(
                self._session,
                listed,
                {other: taken[other].sealed[client] for other in self._ring.neighbours(client) if other in taken},
            )
            for client in listed
        }

    def expect(self, bits: int, asked: bytes = b"") -> None:
        """Say what the vectors are: modulo ``2**bits``, and of a question with this digest (``SecureClient.mask``)."""
        self._bits, self._asked = bits, asked

    def add(self, answer: Masked) -> None:
        """Take one answer of phase 3."""
        length = len(answer.words) if self._total is None else len(self._total)
        if answer.client not in self._sharing or answer.client in self._added:
            self.refused[answer.client] = "a masked vector that is not asked for"
        elif not in_ring(answer.words, self._bits) or len(answer.words) != length:
            self.refused[answer.client] = f"no masked vector of {length} numbers below 2**{self._bits}"
        else:
            total = answer.words.copy() if self._total is None else self._total + answer.words
            self._total = total & largest(self._bits)
            self._added.add(answer.client)
            self._agreed[answer.client] = answer.signature

    def survivors(self) -> Survivors:
        """Return the question of phase 4. Raises TooFewClients."""
        self._left("sent a masked vector", self._added)
        return Survivors(self._session, tuple(sorted(self._added)))

    def unmasking_of_all(self) -> Unmasking | None:
        """Return the question of phase 5 where nobody has vanished; None: phase 4 comes before."""
        if self._added != self._sharing or not self._ring.complete:
            return None
        try:
            return self.unmasking(Agreement(client, signature) for client, signature in self._agreed.items())
        except TooFewClients:
            return None

    def unmasking(self, answers: Iterable[Agreement]) -> Unmasking:
        """Take the answers of phase 4, and return the question of phase 5, for the survivors. Raises TooFewClients."""
        survivors = self.survivors()
        content = survivors.content(self._members.digest(self._terms), sorted(self._sharing), self._asked)

        def problem(agreement: Agreement) -> str | None:
            if agreement.client not in self._added:
                return "it is no survivor"
            good = signed_by(self.admitted[agreement.client], agreement.signature, content)
            return None if good else "an agreement that is not signed with the admitted key, for these survivors"

        taken = self._taken(answers, problem)
        self._enough("agreed on the survivors", len(taken), self._ring.plan.quorum)
        dropped = tuple(sorted(self._sharing - self._added))
        enough = sorted(taken)[: self._ring.plan.quorum]  # every client checks each of them
        signatures = {client: taken[client].signature for client in enough}
        return Unmasking(self._session, survivors.survivors, dropped, signatures)

    def sum(self, answers: Iterable[Revealed]) -> Words:
        """Take the answers of phase 5, and return the sum of the survivors' vectors modulo ``2**bits``, ``[length]``.

        Raises TooFewClients if a secret lacks shares, CorruptShares if shares do not give what was promised.
        """
        seeds: dict[int, dict[int, int]] = defaultdict(dict)
        keys: dict[int, dict[int, int]] = defaultdict(dict)
        taken = self._taken(answers, lambda answer: None if answer.client in self._added else "it is no survivor")
        for client, answer in taken.items():
            for found, given in ((seeds, answer.seeds), (keys, answer.keys)):
                for owner, share in given.items():
                    if owner in self._ring.place and client in (holders := self._ring.holders(owner)):
                        found[owner][holders[client]] = share
        assert self._total is not None  # survivors() has seen masked vectors
        total, length = self._total, len(self._total)
        public = {member.client: member for member in self._members.keys}
        for client in sorted(self._added):
            seed = self._secret(client, seeds[client], promise_of, public[client].promise)
            total = total - own_mask(seed, self._session, length, self._bits)
        for client in sorted(self._sharing - self._added):
            key = self._secret(client, keys[client], public_of, public[client].masking)
            for other in self._ring.neighbours(client):
                if other in self._added:
                    pair = key, public[other].masking
                    mask = pair_mask(*pair, self._session, other, client, length, self._bits, self._asked)
                    total = total - mask
        return total & largest(self._bits)

    def _secret(
        self, client: int, shares: Mapping[int, int], public_half: Callable[[bytes], bytes], known: bytes
    ) -> bytes:
        """Return a secret of a client, put together from point -> share; its public half is known."""
        self._enough(f"gave shares of a secret of client {client}", len(shares), self._ring.plan.threshold)
        number = shamir.combine(shares, self._ring.plan.threshold)
        secret = number.to_bytes(shamir.SHARE_BYTES)[1:]
        if number >= 2 ** (8 * shamir.SECRET_BYTES) or public_half(secret) != known:
            raise CorruptShares(f"{self._session}: a secret of client {client} is not the one that it promised")
        return secret

    def _taken(self, answers: Iterable[Answer], problem: Callable[[Answer], str | None]) -> dict[int, Answer]:
        """Return client -> its first answer without a problem."""
        taken: dict[int, Answer] = {}
        for answer in answers:
            said = problem(answer)
            if said is not None:
                self.refused[answer.client] = said
            else:
                taken.setdefault(answer.client, answer)
        return taken

    def _left(self, what: str, clients: Collection[int]) -> None:
        shortfall = self._ring.shortfall(clients)
        if shortfall is not None:
            raise TooFewClients(f"{self._session}: too few clients {what}: {shortfall}")

    def _enough(self, what: str, number: int, needed: int) -> None:
        if number < needed:
            raise TooFewClients(f"{self._session}: {number} clients {what}, {needed} are needed")
