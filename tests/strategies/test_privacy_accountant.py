"""What private rounds cost: the same as dp-accounting says when it is asked directly."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from dp_accounting import dp_event, rdp

from fedmoe.errors import FedMoEError
from strategies import Release, epsilon_of, noise_for
from strategies.privacy import accountant


def directly(noise: float, rate: float, rounds: int, delta: float) -> float:
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    composed = dp_event.SelfComposedDpEvent(event, rounds)
    return float(rdp.RdpAccountant().compose(composed).get_epsilon(delta))


@pytest.mark.parametrize(("noise", "rate", "rounds", "delta"), [(1.0, 0.05, 400, 1e-5), (3.0, 1.0, 7, 1e-6)])
def test_epsilon_is_that_of_the_accountant(noise: float, rate: float, rounds: int, delta: float) -> None:
    expected = directly(noise, rate, rounds, delta)
    assert epsilon_of([Release(noise, rate, rounds)], delta) == pytest.approx(expected, rel=1e-12)
    assert epsilon_of([Release(noise, rate)] * rounds, delta) == pytest.approx(expected, rel=1e-12)


def test_other_rounds_add_up() -> None:
    first, second = Release(1.0, 0.1, 5), Release(2.0, 0.2, 3)
    both = epsilon_of([first, second], 1e-5)
    assert max(epsilon_of([first], 1e-5), epsilon_of([second], 1e-5)) < both
    assert epsilon_of([], 1e-5) == 0.0


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_noise_is_the_smallest_that_keeps_the_budget(epsilon: float) -> None:
    noise = noise_for(epsilon, 1e-5, 0.05, 100)
    assert directly(noise, 0.05, 100, 1e-5) <= epsilon
    assert directly(noise * 0.998, 0.05, 100, 1e-5) > epsilon


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(FedMoEError, match=r"privacy\.epsilon 1e-09 cannot be kept"):
        noise_for(1e-9, 1e-12, 1.0, 10)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return real(name, *rest)

    accountant._epsilon.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FedMoEError, match=r"pip install 'fedmoe\[privacy\]'"):
        epsilon_of([Release(1.0, 0.5)], 1e-5)
