"""What can go wrong in a secure sum: a client refuses, too few clients are left, or shares are wrong."""

from __future__ import annotations

from enum import StrEnum

from fedmoe.errors import FedMoEError, TellableError


class RefusalKind(StrEnum):
    """Why a client does not go on with a secure sum."""

    REPLAYED = "replayed"
    """The sum is one that the client has begun before."""
    OUT_OF_TURN = "out-of-turn"
    """The phase was answered before, or an earlier one was not."""
    COHORT = "cohort"
    """So few clients are left that the sum would tell too much of each."""
    TERMS = "terms"
    """The terms promise less than the client asks for."""
    NOT_ADMITTED = "not-admitted"
    """A member has no admitted key."""
    SIGNATURE = "signature"
    """A signature is not by the admitted key, over this round and these keys."""
    OWN_KEYS = "own-keys"
    """The client's own keys are not among the members' as it sent them."""
    GRAPH = "graph"
    """Shares come from others than the neighbours that follow from the round's keys."""
    SHARES = "shares"
    """A neighbour's keys or shares are damaged."""
    SURVIVORS = "survivors"
    """The unmasking is asked for other clients than the cohort has agreed on."""
    BOTH_KINDS = "both-kinds"
    """Both kinds of share of one client are asked for, which would reveal its vector."""
    UNMASKED = "unmasked"
    """The client has helped to unmask this round already."""
    VECTOR = "vector"
    """What is to be summed does not fit the ring."""


class Refusal(TellableError):
    """A client does not go on. The message names client ids, which the server knows, and nothing of a history."""

    def __init__(self, kind: RefusalKind, reason: str) -> None:
        super().__init__(f"secure aggregation refused ({kind}): {reason}")
        self.kind = kind


class TooFewClients(FedMoEError):
    """A round's secure sum cannot be had: fewer clients than the threshold have answered."""


class CorruptShares(FedMoEError):
    """A secret that was put together from shares is not the one that its client promised."""
