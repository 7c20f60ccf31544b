"""Noise of the clients under a sum: how much each adds, what it must hide, and what a round costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.errors import FedMoEError
from fedmoe.settings import PrivacySettings, Settings
from fedmoe.sums.quantise import quantised, rounded, sensitivity
from fedmoe.sums.terms import Terms
from strategies import PrivacyLedger, build_strategy, epsilon_of
from strategies.privacy.accountant import Release
from strategies.privacy.distributed import DistributedNoise, distributed
from strategies.sums.layer import content_with_sums, exact_sums


def private(**privacy: Any) -> Settings:
    given = {"sum_bits": 12, "side": "distributed"} | privacy
    return Settings.model_validate({"privacy": given, "federation": {"num_rounds": 20, "client_fraction": 1.0}})


def test_the_smallest_accepted_sum_has_all_the_noise() -> None:
    """By hand: 12 bits, 100 clients of whom 60 must answer, 10,000 numbers, multiplier 2."""
    terms = DistributedNoise(2.0, 0.5, 0.6).terms(Terms(12, 100, 0.5, 1), 10_000)
    largest = math.sqrt(2047**2 + 2500 + 2047 + 50)
    assert sensitivity(terms, 10_000) == pytest.approx(largest)
    assert terms.variance == math.ceil(4 * largest**2 / 60)
    assert 60 * terms.variance >= (2.0 * largest) ** 2 > 59 * terms.variance
    # Room for twelve deviations of the noise of all 100, beyond the largest sum without noise.
    assert 2 ** (terms.ring_bits - 1) >= 100 * 2047 + 12 * math.isqrt(100 * terms.variance)


@given(
    bits=st.integers(8, 16),
    numbers=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=300),
    seed=st.integers(0, 2**32),
)
def test_no_rounded_update_is_longer_than_the_noise_is_made_for(bits: int, numbers: list[float], seed: int) -> None:
    terms = Terms(bits, 20, 0.5, 1, variance=100)
    update = np.array(numbers, np.float32)
    integers, _ = quantised(update, 1, terms, np.random.default_rng(seed))
    assert math.sqrt(np.square(integers, dtype=np.int64).sum()) <= sensitivity(terms, len(update)) + 1e-9


def test_without_rounding_anew_updates_are_longer_now_and_then() -> None:
    """Many small numbers: what the test above would find if updates were rounded once."""
    terms = Terms(8, 20, 1.0, 1, variance=100)
    update = np.full(3_000, 1 / math.sqrt(3_000), np.float32)
    limit = sensitivity(terms, len(update))
    lengths = [
        math.sqrt(np.square(rounded(update * np.float32(127), np.random.default_rng(seed))).sum())
        for seed in range(300)
    ]
    kept = [
        math.sqrt(np.square(quantised(update, 1, terms, np.random.default_rng(seed))[0]).sum()) for seed in range(300)
    ]
    assert max(lengths) > 127.1  # longer than before it was rounded
    assert max(kept) <= limit


def test_a_round_costs_its_full_price() -> None:
    """As many Gaussian mechanisms as rounds, without amplification by sampling, whatever the fraction."""
    settings = private(epsilon=8.0)
    mechanism = distributed(settings)
    spent: list[Any] = []
    ledger = PrivacyLedger(settings, mechanism, spent.append)
    while ledger.allows_another():
        ledger.spend(len(spent) + 1)
    assert len(spent) == 20
    assert 7.9 < spent[-1]["epsilon"] <= 8.0
    assert spent[-1]["epsilon"] == epsilon_of([Release(mechanism.noise, 1.0, 20)], settings.privacy.delta)
    assert spent[-1]["epsilon"] > 2 * epsilon_of([Release(mechanism.noise, 0.3, 20)], settings.privacy.delta)
    assert "the server included" in spent[-1]["guarantee"]
    assert spent[-1]["mechanism"].startswith("distributed discrete Gaussian")
    assert distributed(private(noise_multiplier=1.5)).noise == 1.5


@pytest.mark.parametrize(
    ("bits", "clients", "message"),
    [
        (12, 9, "at least 10 clients a round, 9 were chosen"),
        (24, 100, r"must be within 5 and 4095: set privacy.sum_bits to 15"),
        (8, 2000, r"has deviation 4.1 and must be within 5 and 4095: set privacy.sum_bits to 17"),
    ],
)
def test_noise_that_is_too_coarse_or_too_fine_is_refused(bits: int, clients: int, message: str) -> None:
    noise = DistributedNoise(1.0, 0.5, 0.5)
    with pytest.raises(FedMoEError, match=message):
        noise.terms(Terms(bits, clients, 0.5, 1), 100)
    if clients > 9:
        advised = int(message.rsplit(" ", 1)[1])
        assert noise.terms(Terms(advised, clients, 0.5, 1), 100).variance


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"sum_bits": 0, "epsilon": 8}, "side distributed hides an update in the sum alone: set sum_bits"),
        ({"side": "client", "epsilon": 8}, "side client clips single updates, which sum_bits hides"),
        ({"clipping": "adaptive", "epsilon": 8}, "takes clipping fixed and metrics none"),
        ({"metrics": "exact", "epsilon": 8}, "takes clipping fixed and metrics none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(privacy: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        private(**privacy)


def test_row_wise_averages_need_counts_that_are_not_sent() -> None:
    inside = content_with_sums(build_strategy("rowwise", {}))
    with pytest.raises(FedMoEError, match="privacy: RowWise compares the clients' updates"):
        exact_sums(inside, private(epsilon=8.0), DistributedNoise(1.0, 0.2, 0.5))  # type: ignore[arg-type]


def test_the_clipping_norm_of_sums_depends_on_noise() -> None:
    assert PrivacySettings(sum_bits=16).update_norm == 1.0
    assert PrivacySettings(sum_bits=16, epsilon=8.0, side="distributed").update_norm == 0.2
    assert PrivacySettings(sum_bits=16, update_norm=0.7).update_norm == 0.7
