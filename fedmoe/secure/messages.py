"""What server and clients say to each other in a secure sum, phase by phase.

Each phase is a question to every client that is left, and its answer: keys, shares, the masked vector, the survivors
agreed on, and the unmasking. Nothing of the first two phases depends on what is summed, so a sum may go through them
while the one before comes to its end. The fourth is for sums from which somebody has vanished: with its vector a client
agrees to the sum of all who have shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from fedmoe.secure.primitives import Words, encoded

PROTOCOL = "fedmoe secure aggregation 2"


@dataclass(frozen=True)
class Session:
    """One sum of a run.

    Attributes:
        run: an id that no other run has.
        number: of the sum; the sums of a run are counted, and later ones have larger numbers.
    """

    run: str
    number: int

    def about(self, *more: str | int | bytes) -> bytes:
        """Return bytes that say what a key, a seal or a signature of this sum is for."""
        return encoded(PROTOCOL, self.run, self.number, *more)

    def __str__(self) -> str:
        return f"secure sum {self.number}"


@dataclass(frozen=True)
class Terms:
    """What the sum promises: it is taken over at least ``minimum`` clients, or not at all.

    Attributes:
        minimum: the fewest clients whose sum may be known.
        dropouts: largest share of the clients that may vanish after the phase of keys, in [0, 1).
        corrupt: largest share of the clients that may be in league with the server, in [0, 1).
    """

    minimum: int
    dropouts: float
    corrupt: float

    def about(self) -> bytes:
        """Return the terms as bytes, to be signed."""
        return encoded(self.minimum, repr(float(self.dropouts)), repr(float(self.corrupt)))


@dataclass(frozen=True)
class Invitation:
    """Phase 1, the question: take part in a sum, with new keys."""

    session: Session
    terms: Terms


@dataclass(frozen=True)
class SignedKeys:
    """Phase 1, the answer: the keys of one client for one sum.

    Attributes:
        sealing: X25519 public key with which shares are encrypted for the client.
        masking: X25519 public key from which the pairwise masks follow.
        promise: digest of the seed of the client's own mask, to know that it was put together rightly.
        signature: of all this, the session and the terms, with the key that was admitted.
    """

    client: int
    sealing: bytes
    masking: bytes
    promise: bytes
    signature: bytes

    def content(self, invitation: Invitation) -> bytes:
        """Return what is signed."""
        about = invitation.terms.about()
        return invitation.session.about("keys", about, self.client, self.sealing, self.masking, self.promise)


@dataclass(frozen=True)
class Members:
    """Phase 2, the question: share your secrets with your neighbours among these."""

    session: Session
    keys: tuple[SignedKeys, ...]

    def digest(self, terms: Terms) -> bytes:
        """Return what the graph follows from: a digest of all the members' keys."""
        keys = [encoded(k.client, k.sealing, k.masking, k.promise) for k in sorted(self.keys, key=lambda k: k.client)]
        return sha256(self.session.about("members", terms.about(), *keys)).digest()


@dataclass(frozen=True)
class Shares:
    """Phase 2, the answer: receiver -> shares that only the receiver can read."""

    client: int
    sealed: Mapping[int, bytes]


@dataclass(frozen=True)
class Delivery:
    """Phase 3, the question: mask your vector.

    Attributes:
        sharing: all clients that have shared their secrets.
        sealed: those of them that are neighbours -> their shares for this client.
    """

    session: Session
    sharing: tuple[int, ...]
    sealed: Mapping[int, bytes]


@dataclass(frozen=True)
class Masked:
    """Phase 3, the answer.

    Attributes:
        words: the masked vector, ``[length]``.
        signature: an agreement, as in phase 4, to the sum of all who have shared; empty in a sparse graph.
    """

    client: int
    words: Words
    signature: bytes = b""


@dataclass(frozen=True)
class Survivors:
    """Phase 4, the question: sign that the sum is over these clients."""

    session: Session
    survivors: tuple[int, ...]

    def content(self, transcript: bytes, sharing: Sequence[int], asked: bytes) -> bytes:
        """Return what is signed: the sum, the members' keys, who has shared, what was asked, whose vectors are summed.

        asked: digest of the question that the vectors answer, such as the model to train; see ``masks.pair_mask``.
        """
        lists = (encoded(*sorted(sharing)), encoded(*sorted(self.survivors)))
        return self.session.about("survivors", transcript, asked, *lists)


@dataclass(frozen=True)
class Agreement:
    """Phase 4, the answer."""

    client: int
    signature: bytes


@dataclass(frozen=True)
class Unmasking:
    """Phase 5, the question: give shares of the seeds of the survivors, and of the keys of those who dropped out.

    signatures: client -> its agreement.
    """

    session: Session
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    signatures: Mapping[int, bytes]


@dataclass(frozen=True)
class Revealed:
    """Phase 5, the answer.

    Attributes:
        seeds: survivor -> share of the seed of its own mask.
        keys: client that dropped out after it had shared -> share of its masking key.
    """

    client: int
    seeds: Mapping[int, int]
    keys: Mapping[int, int]
