"""Differential privacy against the server itself: each client adds a share of the noise, and only sums are seen.

Kairouz, Liu and Steinke: The distributed discrete Gaussian mechanism for federated learning with secure aggregation
(ICML 2021). With D the largest norm of a client's integers (``fedmoe.sums.quantise.sensitivity``), z the noise
multiplier and k the smallest number of clients whose sum is accepted, each client adds discrete Gaussian noise of
variance ceil((z D)^2 / k) to each number of its update. A chance under the sum of k such noises differs from that under
one discrete Gaussian of k times the variance by a factor of at most exp(10 k exp(-pi^2 variance)) a number, which is
1 + 10^-100 for a variance of 25; less is refused. So the sum is as private as the Gaussian mechanism with multiplier z.

The server knows who took part, so no secret sampling makes the guarantee stronger: a round costs its full price, as if
every client were in every round. Most is had for it with ``federation.client_fraction`` 1.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from fedmoe.sums.noise import LARGEST_DEVIATION
from fedmoe.sums.quantise import sensitivity
from fedmoe.sums.terms import LEAST_BITS, Terms
from strategies.privacy.accountant import noise_for
from strategies.privacy.rule import LEAST_COHORT

LEAST_DEVIATION = 5  # of one client's noise


class DistributedNoise:
    """How much noise each client adds.

    noise: the multiplier z, above 0. norm: the clipping norm. least: the share of the clients asked whose sum is
    accepted, in (0, 1]; where more answer there is more noise.

    ``rate`` is that of sampling which makes the guarantee stronger: 1, none does. ``used_norm`` is the latest round's.
    """

    rate = 1.0
    mechanism = "distributed discrete Gaussian, every client charged for every round"
    guarantee = (
        "(epsilon, delta) for one client's data in place of an update of zero, against whoever sees the clients' sums, "
        "the server included, where masks hide single updates from it; training alone, not evaluation"
    )

    def __init__(self, noise: float, norm: float, least: float) -> None:
        self.noise = noise
        self.used_norm = norm
        self.least = least

    def terms(self, terms: Terms, size: int) -> Terms:
        """Return a round's terms with the variance of a client's noise; size: numbers of an update.

        Raises FedMoEError for too few clients, and where the noise is too fine or too coarse for these bits.
        """
        if terms.clients < LEAST_COHORT:
            raise FedMoEError(
                f"privacy needs at least {LEAST_COHORT} clients a round, {terms.clients} were chosen: raise "
                "federation.client_fraction, or connect more clients"
            )
        variance = self._variance(terms, size)
        if not LEAST_DEVIATION**2 <= variance <= LARGEST_DEVIATION**2:
            fitting = [bits for bits in range(LEAST_BITS, 25) if self._fits(replace(terms, bits=bits), size)]
            advice = f"set privacy.sum_bits to {fitting[-1]}" if fitting else "change the noise or the cohort"
            raise FedMoEError(
                f"privacy: of {terms.bits} bits, a client's noise has deviation {math.sqrt(variance):.1f} and must be "
                f"within {LEAST_DEVIATION} and {LARGEST_DEVIATION}: {advice}"
            )
        return replace(terms, variance=variance)

    def _variance(self, terms: Terms, size: int) -> int:
        survivors = max(1, math.ceil(self.least * terms.clients - 1e-9))
        return math.ceil((self.noise * sensitivity(terms, size)) ** 2 / survivors)

    def _fits(self, terms: Terms, size: int) -> bool:
        return LEAST_DEVIATION**2 <= self._variance(terms, size) <= LARGEST_DEVIATION**2


def distributed(settings: Settings) -> DistributedNoise:
    """Return the mechanism that the settings describe."""
    privacy, federation = settings.privacy, settings.federation
    noise = privacy.noise_multiplier
    if noise is None:
        assert privacy.epsilon is not None  # one of the two is what makes the run private
        noise = noise_for(privacy.epsilon, privacy.delta, 1.0, federation.num_rounds)
    return DistributedNoise(noise, privacy.update_norm, federation.min_reply_fraction)
