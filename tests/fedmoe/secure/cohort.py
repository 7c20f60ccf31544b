"""A cohort of clients in one process, which run a secure sum to its end, with some that vanish on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedmoe.secure.client import SecureClient
from fedmoe.secure.messages import Delivery, Invitation, Members, Session, SignedKeys, Terms, Unmasking
from fedmoe.secure.notes import MemoryNotebook
from fedmoe.secure.primitives import Signer, Words, word_type
from fedmoe.secure.server import SecureSum

SESSION = Session("7", 3)
PHASES = ("keys", "shares", "masked", "agreed", "unmasked")


@cache
def signer(client: int) -> Signer:
    return Signer(client, ec.generate_private_key(ec.SECP384R1()))


@cache
def line(client: int) -> str:
    return signer(client).key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def admitted(clients: Collection[int]) -> dict[int, str]:
    return {client: line(client) for client in clients}


def vectors_of(clients: Collection[int], length: int, bits: int, seed: int) -> dict[int, Words]:
    draw = np.random.default_rng(seed)
    whole = {client: draw.integers(0, 2**bits, length, dtype=np.uint64) for client in clients}
    return {client: vector.astype(word_type(bits)) for client, vector in whole.items()}


@dataclass
class Cohort:
    """Clients 10, 11, ... and the server's side of one sum.

    vanish: phase -> the clients that no longer answer it, nor those after it.
    """

    size: int
    terms: Terms = Terms(3, 0.4, 0.1)
    bits: int = 32
    length: int = 5
    seed: int = 0
    session: Session = SESSION
    vanish: Mapping[str, Collection[int]] = field(default_factory=dict)
    corrupt: float = 0.1
    short: bool = True

    def __post_init__(self) -> None:
        self.ids = range(10, 10 + self.size)
        self.notebooks = {client: MemoryNotebook() for client in self.ids}
        self.vectors = vectors_of(self.ids, self.length, self.bits, self.seed)
        self.server = SecureSum(self.session, self.terms, admitted(self.ids))
        self.server.expect(self.bits)

    def client(self, client: int) -> SecureClient:
        """Return a client as it is after a restart: what it knows is in its notebook."""
        return SecureClient(signer(client), admitted(self.ids), self.notebooks[client], corrupt=self.corrupt)

    def here(self, phase: str, among: Collection[int]) -> list[int]:
        """Return the clients that answer in a phase."""
        gone = {client for each in PHASES[: PHASES.index(phase) + 1] for client in self.vanish.get(each, ())}
        return [client for client in among if client not in gone]

    def invitation(self) -> Invitation:
        return self.server.invitation()

    def sent_keys(self) -> list[SignedKeys]:
        return [self.client(client).keys(self.invitation()) for client in self.here("keys", self.ids)]

    def until_members(self) -> Members:
        return self.server.members(self.sent_keys())

    def until_deliveries(self) -> dict[int, Delivery]:
        members = self.until_members()
        there = self.here("shares", [keys.client for keys in members.keys])
        return self.server.deliveries([self.client(client).share(members) for client in there])

    def until_masked(self) -> dict[int, Words]:
        """Return client -> its masked vector; the server has added them."""
        deliveries = self.until_deliveries()
        masked = {}
        for client in self.here("masked", deliveries):
            answer = self.client(client).mask(deliveries[client], self.vectors[client], self.bits)
            self.server.add(answer)
            masked[client] = answer.words
        return masked

    def until_unmasking(self) -> Unmasking:
        self.until_masked()
        return self._agreed()

    def _agreed(self) -> Unmasking:
        survivors = self.server.survivors()
        there = self.here("agreed", survivors.survivors)
        return self.server.unmasking([self.client(client).agree(survivors) for client in there])

    def sum(self) -> Words:
        """Return the sum, by the short way where nobody has vanished and that is wanted."""
        self.until_masked()
        unmasking = (self.server.unmasking_of_all() if self.short else None) or self._agreed()
        there = self.here("unmasked", unmasking.survivors)
        return self.server.sum([self.client(client).unmask(unmasking) for client in there])

    def expected(self) -> Words:
        """Return the plain sum over the clients whose masked vectors arrived."""
        total = np.zeros(self.length, np.uint64)
        for client in self.here("masked", self.ids):
            total += self.vectors[client].astype(np.uint64)
        return (total & np.uint64(2**self.bits - 1)).astype(word_type(self.bits))
