"""Accounting of client-level differential privacy: what rounds of the sampled Gaussian mechanism cost.

One round: every client takes part with probability q, independently of all others (Poisson sampling); the sum of the
updates, each of L2 norm C at most, gets Gaussian noise of standard deviation z * C on every coordinate. Neighbouring
are two federations that differ by the presence of one client with all its data (add or remove one). The cost is that of
``dp_accounting``'s Renyi accountant (Mironov, Talwar and Zhang: Renyi differential privacy of the sampled Gaussian
mechanism, 2019), at its default orders.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedmoe.errors import FedMoEError

LARGEST_NOISE = 1e4
TOLERANCE = 1e-3  # of the noise multiplier, which is rounded up


@dataclass(frozen=True)
class Release:
    """Equal rounds: their noise multiplier z above 0, their sampling rate q in (0, 1], and how many they are."""

    noise: float
    rate: float
    rounds: int = 1


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """Return the epsilon of all releases together, at ``delta`` in (0, 1); 0 for none.

    Raises FedMoEError where ``dp-accounting`` is not installed.
    """
    merged: dict[tuple[float, float], int] = {}
    for release in releases:
        key = (release.noise, release.rate)
        merged[key] = merged.get(key, 0) + release.rounds
    return _epsilon(tuple((noise, rate, rounds) for (noise, rate), rounds in merged.items() if rounds), delta)


def noise_for(epsilon: float, delta: float, rate: float, rounds: int) -> float:
    """Return the smallest noise multiplier, to a thousandth, with which ``rounds`` rounds cost at most ``epsilon``.

    Raises FedMoEError if no noise is large enough.
    """

    def cost(noise: float) -> float:
        return epsilon_of([Release(noise, rate, rounds)], delta)

    high = 1.0
    while cost(high) > epsilon:
        high *= 2.0
        if high > LARGEST_NOISE:
            raise FedMoEError(f"privacy.epsilon {epsilon:g} cannot be kept at delta {delta:g} in {rounds} rounds")
    low = 0.0
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if cost(middle) <= epsilon else (middle, high)
    return high


@lru_cache(maxsize=4096)
def _epsilon(releases: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not releases:
        return 0.0
    _, rdp = _backend()
    # Renyi divergences of rounds add up: that of one round is worked out once, for any number of them.
    found = [(rounds, *_of_one(noise, rate)) for noise, rate, rounds in releases]
    orders, total = found[0][1], sum(rounds * divergence for rounds, _, divergence in found)
    with _quiet():
        return float(rdp.compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=64)
def _of_one(noise: float, rate: float) -> tuple[Any, Any]:
    """Return the orders of the accountant, and the Renyi divergence of one round at each of them."""
    dp_event, rdp = _backend()
    with _quiet():
        accountant = rdp.RdpAccountant()
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)))
    return accountant.orders, accountant.rdp


def _backend() -> tuple[Any, Any]:
    try:
        from dp_accounting import dp_event, rdp
    except ImportError as error:
        raise FedMoEError("privacy needs the package dp-accounting: pip install 'fedmoe[privacy]'") from error
    return dp_event, rdp


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings about orders that the accountant leaves out: it takes the best of the others."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
