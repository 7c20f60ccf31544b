"""Shamir 1979, "How to share a secret": any ``threshold`` shares give the secret, fewer say nothing about it.

Flower's own (``flwr.common.secure_aggregation.crypto.shamir``) returns a wrong secret without a word where there are
too few shares or two of the same index.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297  # the smallest prime above 2^256, so that any 32 bytes are an element of the field
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: int,
    threshold: int,
    points: Sequence[int],
    prime: int = PRIME,
    draw: Callable[[int], int] = secrets.randbelow,
) -> list[int]:
    """Return a share for each point: the value there of a random polynomial that is ``secret`` at 0.

    Args:
        threshold: shares that are needed to have the secret back.
        points: distinct elements of the field other than 0, at least ``threshold``.
        draw: returns a random number from 0 to below its argument.
    """
    if not 0 <= secret < prime:
        raise ValueError("the secret is no element of the field")
    distinct = {point % prime for point in points}
    if 0 in distinct or len(distinct) < len(points) or not 1 <= threshold <= len(points):
        raise ValueError(f"{threshold} of {len(points)} shares: points are distinct, not 0, and no fewer")
    coefficients = [secret, *(draw(prime) for _ in range(threshold - 1))]
    return [_value(coefficients, point, prime) for point in points]


def combine(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> int:
    """Return the secret from point -> share. Raises ValueError for fewer than ``threshold`` shares."""
    if len({point % prime for point in shares}) < threshold:
        raise ValueError(f"{len(shares)} shares of the {threshold} that are needed")
    points = tuple(sorted(shares))[:threshold]
    weights = _weights_at_zero(points, prime)
    return sum(weight * shares[point] for weight, point in zip(weights, points, strict=True)) % prime


def _value(coefficients: Sequence[int], point: int, prime: int) -> int:
    """Return a polynomial's value by Horner's rule; the constant comes first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value


@lru_cache(maxsize=256)  # in a complete graph all secrets have the same holders
def _weights_at_zero(points: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """Return what each value counts in Lagrange's interpolation at 0."""
    weights = []
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above = above * other % prime
                below = below * (other - point) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return tuple(weights)
