"""Discrete Gaussian noise: P(x) is proportional to exp(-x^2 / (2 variance)) over the integers.

Canonne, Kamath and Steinke: The discrete Gaussian for differential privacy (NeurIPS 2020). Their sampler tries
exponentials one by one; here numbers are drawn from a table of the chances by the alias method (Walker 1977, Vose
1991), which takes two random integers a number whatever the variance. The chances are whole numbers of 2^-160, and a
draw compares integers of 64 bits: a run of 10^10 numbers can be told from an exact one with a chance below 2^-30. What
lies beyond ``FAR`` deviations, with a chance below 2^-100, never comes.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

FAR = 12
LARGEST_DEVIATION = 4095  # with its table of 98,000 numbers
DIGITS = Context(prec=80)
WHOLE = 2**160
Integers = NDArray[np.int64]


def discrete_gaussian(variance: int, size: int, rng: np.random.Generator) -> Integers:
    """Return ``size`` draws of the discrete Gaussian; variance: of the Gaussian that it discretises, a whole number.

    Raises FedMoEError for a variance of 0 or above ``LARGEST_DEVIATION**2``.
    """
    if not 0 < variance <= LARGEST_DEVIATION**2:
        raise FedMoEError(f"noise of variance {variance} cannot be drawn: 1 to {LARGEST_DEVIATION**2}")
    limits, others = _alias_table(variance)
    places = rng.integers(len(limits), size=size)
    second = rng.integers(2**64, size=size, dtype=np.uint64) >= limits[places]
    places[second] = others[places[second]]
    places -= len(limits) // 2
    return places


@lru_cache(maxsize=8)
def _alias_table(variance: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Return a table in which each place stands for itself, or for another one from a limit of 2^64 parts on.

    The place in the middle stands for 0, its neighbours for -1 and 1, and so on.
    """
    half = chances(variance)
    # Each place has the chance of 1 / size. What a likely number has beyond it fills the places of unlikely ones.
    size, left = 2 * len(half) - 1, [*half[:0:-1], *half]
    whole, left = sum(left), [chance * size for chance in left]
    limits, others = np.full(size, 2**64 - 1, np.uint64), np.arange(size, dtype=np.int32)
    short = [place for place, chance in enumerate(left) if chance < whole]
    long = [place for place, chance in enumerate(left) if chance >= whole]
    while short and long:
        place, other = short.pop(), long[-1]
        limits[place], others[place] = (left[place] << 64) // whole, other
        left[other] -= whole - left[place]
        if left[other] < whole:
            short.append(long.pop())
    return limits, others


def chances(variance: int) -> list[int]:
    """Return in proportion the chances of 0, 1, 2 ... up to ``FAR`` deviations; that of 0 is ``WHOLE``."""
    # exp(-(x + 1)^2 / 2v) is exp(-x^2 / 2v) times a step, and each step is the one before it times exp(-1 / v).
    shrink = DIGITS.exp(DIGITS.divide(Decimal(-1), Decimal(variance)))
    chance, step, found = Decimal(WHOLE), DIGITS.sqrt(shrink), []
    for _ in range(FAR * (isqrt(variance) + 1) + 1):
        found.append(int(chance))
        chance, step = DIGITS.multiply(chance, step), DIGITS.multiply(step, shrink)
    return found
