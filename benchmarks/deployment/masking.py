"""What masks cost: a secure sum among clients in this process, from which nobody vanishes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedmoe.secure.client import SecureClient
from fedmoe.secure.messages import Session, Terms
from fedmoe.secure.notes import MemoryNotebook
from fedmoe.secure.primitives import Signer, word_type
from fedmoe.secure.server import SecureSum

Said = TypeVar("Said")


def seconds_of_a_sum(length: int, bits: int, clients: int, dropouts: float = 0.3) -> tuple[float, float]:
    """Return the processor seconds that one client, and the server for all of them, spend on a sum beside training.

    length: of a vector; bits: of an entry; dropouts: share of the clients that might vanish.
    """
    signers = [Signer(client, ec.generate_private_key(ec.SECP384R1())) for client in range(clients)]
    admitted = {
        each.client: each.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        for each in signers
    }
    each = [SecureClient(signer, admitted, MemoryNotebook()) for signer in signers]
    total = SecureSum(Session("benchmark", 1), Terms(3, dropouts, 0.1), admitted)
    total.expect(bits)
    vector = np.ones(length, word_type(bits))
    spent = {"clients": 0.0, "server": 0.0}

    def timed(who: str, what: Callable[[], Said]) -> Said:
        begun = time.process_time()
        said = what()
        spent[who] += time.process_time() - begun
        return said

    invitation = total.invitation()
    keys = timed("clients", lambda: [client.keys(invitation) for client in each])
    members = timed("server", lambda: total.members(keys))
    shares = timed("clients", lambda: [client.share(members) for client in each])
    deliveries = timed("server", lambda: total.deliveries(shares))
    for number, client in enumerate(each):
        masked = timed("clients", lambda c=client, n=number: c.mask(deliveries[n], vector, bits))  # type: ignore[misc]
        timed("server", lambda m=masked: total.add(m))  # type: ignore[misc]
    unmasking = timed("server", total.unmasking_of_all)
    if unmasking is None:  # a sparse graph
        survivors = total.survivors()
        agreed = timed("clients", lambda: [client.agree(survivors) for client in each])
        unmasking = timed("server", lambda: total.unmasking(agreed))
    request = unmasking
    revealed = timed("clients", lambda: [client.unmask(request) for client in each])
    found = timed("server", lambda: total.sum(revealed))
    assert (found == clients % 2**bits).all()
    return spent["clients"] / clients, spent["server"]
