"""The terms of an exact sum: what all clients of a round agree on, so that their vectors can be added up.

An entry of one client lies within -L..L with L = 2^(bits - 1) - 1. At most n clients are added up, so a sum lies within
-n L..n L. The ring has at least 2 n L + 1 elements: no sum can wrap around, whatever the clients hold. An array is
scaled by L / (norm * weight): an update whose Euclidean norm is at most ``norm`` has no number beyond L.

Where clients add noise of ``variance`` each, a sum has no bound. The ring then has room for ``SPREAD`` deviations of
the noise more, beyond which an entry of a sum lies with a chance below 10^-31.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, isqrt
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

PREFIX = "sum-"  # begins the keys of the terms in a message's config
LEAST_BITS, MOST_BITS = 8, 24  # of an entry of one client; a float32 holds integers of 24 bits exactly
MOST_RING_BITS = 62  # sums are decoded in int64
SPREAD = 12
Ring = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Terms:
    """What the clients of a round agree on.

    bits: of an entry of one client, with its sign. clients: at most so many are added up. norm: the largest Euclidean
    norm of a client's update; a longer one is clipped. weight: the largest weight of a client; more counts as this.
    variance: of the noise that each client adds to each number of its update, in squares of an entry's step; 0: none.

    Raises FedMoEError for terms with which nothing can be added up.
    """

    bits: int
    clients: int
    norm: float
    weight: int
    variance: int = 0

    def __post_init__(self) -> None:
        if not LEAST_BITS <= self.bits <= MOST_BITS:
            raise FedMoEError(f"privacy.sum_bits must be 0 or {LEAST_BITS} to {MOST_BITS}, is {self.bits}")
        if self.clients < 1 or self.weight < 1 or not (isfinite(self.norm) and self.norm > 0):
            raise FedMoEError(
                f"exact sums need clients, a weight and a norm above 0: {self.clients}, {self.weight}, {self.norm}"
            )
        if self.ring_bits > MOST_RING_BITS:
            raise FedMoEError(f"{self.clients} clients of {self.bits} bits do not fit into {MOST_RING_BITS} bits")

    @property
    def largest(self) -> int:
        """L, the largest entry of one client."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def ring_bits(self) -> int:
        """Bits of an entry of the ring: vectors are added modulo ``2**ring_bits``."""
        most = self.clients * self.largest + SPREAD * isqrt(self.clients * self.variance)
        return (2 * most).bit_length()

    @property
    def count_bits(self) -> int:
        """Bits of an entry that counts clients."""
        return self.clients.bit_length()

    @property
    def dtype(self) -> np.dtype[Any]:
        """The unsigned integers that hold an entry of the ring."""
        return np.dtype(np.uint32 if self.ring_bits <= 32 else np.uint64)

    @property
    def unit(self) -> float:
        """What one step of an entry is worth in a client's update times its weight."""
        return self.norm * self.weight / self.largest

    def in_ring(self, integers: NDArray[Any]) -> Ring:
        """Return integers as elements of the ring, from 0 to ``2**ring_bits - 1``."""
        wrapped: Ring = self.wrapped(integers) & self.dtype.type(2**self.ring_bits - 1)
        return wrapped

    def wrapped(self, integers: NDArray[Any]) -> Ring:
        """Return integers modulo ``2**32`` or ``2**64``, which is enough where more is to be added; perhaps a view."""
        same = integers.dtype.itemsize == self.dtype.itemsize and integers.flags.c_contiguous
        return integers.view(self.dtype) if same else integers.astype(self.dtype)

    def signed(self, elements: Ring) -> NDArray[np.int64]:
        """Return the integers, around 0, that elements of the ring stand for; whole words are taken modulo the ring."""
        found = self.in_ring(elements).astype(np.int64)
        found[found >= 2 ** (self.ring_bits - 1)] -= 2**self.ring_bits
        return found

    def to_config(self) -> dict[str, int | float]:
        """Return the terms as entries of a message's config."""
        return {PREFIX + name: value for name, value in asdict(self).items()}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the terms that a message's config holds. FedMoEError: some are missing, or cannot be."""
        try:
            whole = {name: int(config[PREFIX + name]) for name in ("bits", "clients", "weight", "variance")}
            return cls(norm=float(config[f"{PREFIX}norm"]), **whole)
        except (KeyError, TypeError, ValueError) as error:
            raise FedMoEError(f"the message's config does not say how to add up: {error}") from error
