"""Discrete Gaussian noise, drawn exactly: integers are compared with integers, and no number is ever rounded.

Canonne, Kamath and Steinke: The discrete Gaussian for differential privacy (NeurIPS 2020), algorithms 1 to 3, for many
numbers at once. P(x) is proportional to exp(-x^2 / (2 variance)) over the integers. A draw that lies beyond ``FAR``
deviations, which happens with a chance below e^-1700, is taken anew: integers of 64 bits are wide enough for the rest.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

FAR = 60
LARGEST_DEVIATION = 4095  # (FAR * 4096^2)^2 < 2^63
Integers = NDArray[np.int64]


def discrete_gaussian(variance: int, size: int, rng: np.random.Generator) -> Integers:
    """Return ``size`` draws of the discrete Gaussian; variance: of the Gaussian that it discretises, a whole number.

    Raises FedMoEError for a variance of 0 or above ``LARGEST_DEVIATION**2``.
    """
    if not 0 < variance <= LARGEST_DEVIATION**2:
        raise FedMoEError(f"noise of variance {variance} cannot be drawn: 1 to {LARGEST_DEVIATION**2}")
    scale = isqrt(variance) + 1
    found, left = [], size
    while left:
        drawn = _laplace(scale, 2 * left + 16, rng)
        drawn = drawn[np.abs(drawn) <= FAR * scale]
        # exp(-(|x| - variance / scale)^2 / (2 variance)), both sides of the fraction times scale^2
        numerators = (np.abs(drawn) * scale - variance) ** 2
        accepted = drawn[_exponential(numerators, 2 * variance * scale**2, rng)][:left]
        found.append(accepted)
        left -= len(accepted)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _laplace(scale: int, tries: int, rng: np.random.Generator) -> Integers:
    """Return at most ``tries`` draws of P(x) proportional to exp(-|x| / scale)."""
    remainders = rng.integers(scale, size=tries)
    remainders = remainders[_exponential(remainders, scale, rng)]
    sizes = remainders + scale * _successes(len(remainders), rng)
    negative = rng.integers(2, size=len(sizes)) == 1
    kept = ~(negative & (sizes == 0))  # 0 must not come twice as often
    drawn: Integers = np.where(negative, -sizes, sizes)[kept]
    return drawn


def _exponential(numerators: Integers, denominator: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return for each fraction f whether a chance of exp(-f) came true; fractions are at least 0."""
    whole, rest = np.divmod(numerators, denominator)
    came_true = _below_one(rest, denominator, rng)
    going = np.flatnonzero(came_true & (whole > 0))
    done = 0
    while len(going):  # exp(-1) once for each whole
        done += 1
        succeeded = _below_one(np.full(len(going), denominator), denominator, rng)
        came_true[going[~succeeded]] = False
        going = going[succeeded]
        going = going[whole[going] > done]
    return came_true


def _below_one(numerators: Integers, denominator: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return for each fraction f of 0 to 1 whether a chance of exp(-f) came true.

    Chances of f / 1, f / 2, f / 3 ... are tried until one fails: it is an odd one with the chance of exp(-f).
    """
    odd = np.ones(len(numerators), bool)
    going, number = np.arange(len(numerators)), 1
    while len(going):
        succeeded = rng.integers(denominator * number, size=len(going)) < numerators[going]
        going = going[succeeded]
        odd[going] ^= True
        number += 1
    return odd


def _successes(size: int, rng: np.random.Generator) -> Integers:
    """Return how often in a row a chance of exp(-1) came true, ``[size]``."""
    counts, going = np.zeros(size, np.int64), np.arange(size)
    while len(going):
        going = going[_below_one(np.ones(len(going), np.int64), 1, rng)]
        counts[going] += 1
    return counts
