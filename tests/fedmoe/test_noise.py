"""Discrete Gaussian noise: the chances are those of the definition, for small variances and for large ones."""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chisquare, kstest, norm

from fedmoe.errors import FedMoEError
from fedmoe.sums.noise import LARGEST_DEVIATION, WHOLE, _alias_table, chances, discrete_gaussian


def stream(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


@pytest.mark.parametrize("variance", [1, 4, 30])
def test_chances_are_those_of_the_definition(variance: int) -> None:
    """A rounded Gaussian, the short cut, fails the same test where it differs enough: with variance 1."""
    draws, reach = 200_000, 3 * int(variance**0.5)
    numbers = np.arange(-200, 201)
    chances = np.exp(-(numbers**2) / (2 * variance))
    chances /= chances.sum()
    inside = np.abs(numbers) <= reach
    expected = draws * np.append(chances[inside], chances[~inside].sum())

    def p_value(drawn: np.ndarray) -> float:
        counts = [(drawn == number).sum() for number in numbers[inside]]
        return float(chisquare([*counts, draws - sum(counts)], expected).pvalue)

    assert p_value(discrete_gaussian(variance, draws, stream(3))) > 1e-3
    if variance == 1:
        assert p_value(np.round(stream().normal(0, 1, draws))) < 1e-6


def test_large_variances_look_like_a_gaussian() -> None:
    drawn = discrete_gaussian(LARGEST_DEVIATION**2, 100_000, stream(1))
    assert kstest(drawn / LARGEST_DEVIATION, norm.cdf).pvalue > 1e-3
    assert drawn.dtype == np.int64 and len(drawn) == 100_000


@pytest.mark.parametrize("variance", [1, 30, 5000])
def test_the_table_gives_each_number_its_chance(variance: int) -> None:
    """To within 2^-63 of all chances together, added up in whole numbers."""
    limits, others = _alias_table(variance)
    size, half = len(limits), chances(variance)
    found = [0] * size
    for place, (limit, other) in enumerate(zip(limits.tolist(), others.tolist(), strict=True)):
        own = 2**64 if other == place else limit
        found[place] += own
        found[other] += 2**64 - own
    wanted = [half[abs(place - size // 2)] for place in range(size)]
    whole = sum(wanted)
    apart = sum(abs(Fraction(got, size << 64) - Fraction(want, whole)) for got, want in zip(found, wanted, strict=True))
    assert apart < Fraction(1, 2**63)


def test_chances_are_right_to_thirty_digits() -> None:
    for number, chance in enumerate(chances(7)):
        exact = Decimal(WHOLE) * Context(prec=100).exp(Decimal(-number * number) / 14)
        assert abs(chance - exact) < max(2, exact * Decimal("1e-26"))


def test_draws_follow_the_stream_and_none_is_possible() -> None:
    assert (discrete_gaussian(9, 50, stream(5)) == discrete_gaussian(9, 50, stream(5))).all()
    assert len(discrete_gaussian(9, 0, stream())) == 0
    for variance in (0, LARGEST_DEVIATION**2 + 1):
        with pytest.raises(FedMoEError, match="cannot be drawn"):
            discrete_gaussian(variance, 1, stream())
