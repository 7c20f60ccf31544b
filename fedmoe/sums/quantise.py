"""A client's update as integers, and its weight and metrics as digits of a number that is added up exactly.

An update u, over all shared arrays together, is clipped to the norm C, weighted by w of at most W, and scaled:

    x = u * min(1, C / ||u||) * w / W * L / C,      an integer: floor(x), or floor(x) + 1 with probability x - floor(x)

Stochastic rounding is right on average. Zero stays zero, so a row that a client did not touch is 0 for certain, and
whether it is in the vector changes nothing.

Rounding makes an update a little longer. Where noise must hide it, it is rounded anew until its norm is at most
``sensitivity``: at least one rounding in three is (Kairouz, Liu and Steinke: The distributed discrete Gaussian
mechanism for federated learning with secure aggregation, ICML 2021).

The sum of w * m over the clients is wanted of a metric m. w * m is taken in units of 2^-24, to the nearest, and written
in digits of base 2^(bits - 1), all with the sign of the number: the digits' sums give the sum of the numbers, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from fedmoe.sums.terms import Terms

FRACTION = 24  # bits behind the point of a metric times a weight
MAGNITUDE = 24  # bits before the point of a metric; one beyond is cut to 2^24
WEIGHT = "num-examples"
CLIPPED = "clipped"  # the metric that says whether the update was clipped: its mean is a share


def clipping_factor(update: NDArray[np.float32], norm: float) -> float:
    """Return by how much an update is scaled so that its Euclidean norm is at most ``norm``: 1 where it is already.

    Raises FloatingPointError if a number of it is not finite.
    """
    # Not a dot product: NumPy's own sum does not depend on the number of threads.
    length = sqrt(float(np.square(update, dtype=np.float64).sum()))
    if not np.isfinite(length):
        raise FloatingPointError("the update is not finite")
    return 1.0 if length <= norm else norm / length


def rounded(values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Return each value rounded down, or up with the probability of what is behind its point."""
    below = np.floor(values)
    integers: NDArray[np.int32] = below.astype(np.int32)
    integers += rng.random(values.shape, np.float32) < np.subtract(values, below, out=below)
    return integers


def quantised(
    update: NDArray[np.float32], weight: int, terms: Terms, rng: np.random.Generator
) -> tuple[NDArray[np.int32], bool]:
    """Return a client's update times its weight as integers within -L..L, ``[numbers]``; and whether it was clipped.

    update: ``[numbers]``, over all arrays. rng: the client's stream of the round.
    """
    factor, most = clipping_factor(update, terms.norm), np.float32(terms.largest)
    scaled = np.multiply(update, np.float32(factor * min(weight, terms.weight) / terms.unit))
    np.clip(scaled, -most, most, out=scaled)
    longest = sensitivity(terms, len(update)) ** 2
    while True:
        integers = rounded(scaled, rng)
        if not terms.variance or int(np.square(integers, dtype=np.int64).sum()) <= longest:
            return integers, factor < 1.0


def sensitivity(terms: Terms, size: int) -> float:
    """Return the largest norm of a client's integers, before noise; size: how many numbers it may round.

    With L for the norm that was clipped to and d numbers: the root of L^2 + d / 4 + L + sqrt(d) / 2 (Kairouz et al.
    with beta = e^-1/2), or L + sqrt(d) where that is less.
    """
    most = terms.largest
    return min(sqrt(most**2 + size / 4 + most + sqrt(size) / 2), most + sqrt(size))


def digits_of(terms: Terms) -> int:
    """Return how many digits a number has."""
    return -(-(FRACTION + MAGNITUDE + terms.weight.bit_length()) // (terms.bits - 1))


def to_digits(metrics: Mapping[str, int | float], weight: int, terms: Terms) -> NDArray[np.int32]:
    """Return the weight, and each metric times the weight, in digits ``[1 + metrics, digits]``, the last digit first.

    Raises FedMoEError for a metric that is no number, FloatingPointError for one that is not finite.
    """
    weight, most = min(weight, terms.weight), float(2**MAGNITUDE)
    numbers = [weight << FRACTION]
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            raise FedMoEError(f"metric '{name}' is a {type(value).__name__}: exact sums hold numbers")
        if not np.isfinite(value):
            raise FloatingPointError(f"metric '{name}' is not finite")
        numbers.append(round(weight * min(max(float(value), -most), most) * 2**FRACTION))
    base, found = terms.bits - 1, np.zeros((len(numbers), digits_of(terms)), np.int32)
    for place, number in enumerate(numbers):
        sign, left = (-1, -number) if number < 0 else (1, number)
        for digit in range(found.shape[1]):
            found[place, digit] = sign * (left & (2**base - 1))
            left >>= base
    return found


def from_digits(sums: NDArray[np.int64], terms: Terms) -> list[int]:
    """Return the numbers, in units of ``2**-FRACTION``, whose digits were added up to ``sums [numbers, digits]``."""
    base = terms.bits - 1
    return [sum(int(digit) << (base * place) for place, digit in enumerate(row)) for row in sums.tolist()]
