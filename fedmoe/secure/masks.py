"""The masks of a secure sum: each client's own, and one of each pair of neighbours, which cancel in the sum."""

from __future__ import annotations

from hashlib import sha256

from fedmoe.secure.messages import Session
from fedmoe.secure.primitives import Words, agreed_key, derived, largest, stream


def promise_of(seed: bytes) -> bytes:
    """Return a digest that binds a client to the seed of its own mask and tells nothing of it."""
    return sha256(b"seed" + seed).digest()


def own_mask(seed: bytes, session: Session, length: int, bits: int) -> Words:
    """Return a client's own mask, ``[length]`` below ``2**bits``; it hides a vector whose pairs were all unmasked."""
    return stream(derived(seed, session.about("own mask")), length, bits)


def pair_mask(
    private: bytes, public: bytes, session: Session, client: int, other: int, length: int, bits: int, asked: bytes
) -> Words:
    """Return what ``client`` adds for its pair with ``other``: the same as the other one adds, with the other sign.

    private: of one of the two; public: of the other one. asked: digest of the question that the vectors answer; masks
    of two who were asked different things do not cancel, so no sum tells what one of them has answered (Pasquini et
    al. 2022, "Eluding secure aggregation in federated learning via model inconsistency").

    Raises ValueError for a public key that is none.
    """
    pair = session.about("pair mask", min(client, other), max(client, other), asked)
    drawn = stream(agreed_key(private, public, pair), length, bits)
    return drawn if client < other else (-drawn) & largest(bits)
