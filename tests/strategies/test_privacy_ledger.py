"""A private run's noise and its ledger: what is spent, when it is enough, what a resumed run goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event, rdp

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from strategies import (
    PrivacyLedger,
    build_strategy,
    noise_of,
    privacy_section,
    private,
    read_ledger,
    secret_of,
    spent_before,
)


def settings_of(rounds: int = 20, fraction: float = 0.1, **privacy: Any) -> Settings:
    federation = {"num_rounds": rounds, "client_fraction": fraction}
    return Settings.model_validate({"federation": federation, "privacy": privacy})


def ledger_of(folder: Path, settings: Settings, spent: Any = ()) -> PrivacyLedger:
    def save(document: Mapping[str, Any]) -> None:
        (folder / "privacy.json").write_text(json.dumps(document))

    return PrivacyLedger(settings, private(build_strategy("fedavg", {}), settings, 1), save, spent)


def directly(noise: float, rate: float, rounds: int) -> float:
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    return float(rdp.RdpAccountant().compose(event, rounds).get_epsilon(1e-5))


def test_privacy_is_off_unless_asked_for() -> None:
    assert not Settings().privacy.on
    assert settings_of(epsilon=8).privacy.on
    assert settings_of(noise_multiplier=1).privacy.on


def test_the_budget_is_enough_for_exactly_the_rounds_of_the_run(tmp_path: Path) -> None:
    settings = settings_of(rounds=8, epsilon=8.0)
    assert directly(noise_of(settings), 0.1, 8) <= 8.0
    ledger = ledger_of(tmp_path, settings)
    rounds = 0
    while ledger.allows_another():
        rounds += 1
        entry = ledger.spend(rounds)
        assert entry["epsilon"] == pytest.approx(directly(noise_of(settings), 0.1, rounds))
    assert rounds == 8
    written = json.loads((tmp_path / "privacy.json").read_text())
    assert [entry["round"] for entry in written["rounds"]] == list(range(1, 9))
    assert written["epsilon"] <= written["budget"] == 8.0


def test_a_given_noise_spends_the_budget_sooner_or_has_none(tmp_path: Path) -> None:
    settings = settings_of(epsilon=3.0, noise_multiplier=1.0)
    ledger = ledger_of(tmp_path, settings)
    rounds = 0
    while ledger.allows_another():
        rounds += 1
        ledger.spend(rounds)
    assert 0 < rounds < 20
    assert directly(1.0, 0.1, rounds) <= 3.0 < directly(1.0, 0.1, rounds + 1)
    free = ledger_of(tmp_path, settings_of(noise_multiplier=0.5))
    assert all(free.allows_another() and free.spend(number) for number in range(1, 30))
    with pytest.raises(FedMoEError, match=r"privacy\.epsilon 0\.01 does not allow one round"):
        ledger_of(tmp_path, settings_of(epsilon=0.01, noise_multiplier=0.7))


def test_a_resumed_run_goes_on_with_what_was_spent(tmp_path: Path) -> None:
    settings = settings_of(noise_multiplier=1.0)
    ledger = ledger_of(tmp_path, settings)
    entries = [ledger.spend(number) for number in range(1, 6)]
    file = tmp_path / "privacy.json"
    # A simulation repeats rounds 4 and 5; real clients may answer otherwise, so there they stay paid.
    simulated = ledger_of(tmp_path, settings, spent_before(file, entries[:3], deployed=False))
    assert simulated.spend(4)["epsilon"] == entries[3]["epsilon"]
    ledger.spend(6)
    real = ledger_of(tmp_path, settings, spent_before(file, entries[:3], deployed=True))
    assert len(real.rounds) == 6
    assert spent_before(None, [], deployed=True) == []


def test_real_clients_do_not_learn_where_the_noise_comes_from() -> None:
    settings = settings_of(epsilon=8.0)
    assert secret_of(settings, deployed=False) == settings.seed
    assert len({secret_of(settings, deployed=True) for _ in range(5)} - {settings.seed}) == 5


def test_the_report_says_what_was_spent(tmp_path: Path) -> None:
    file = tmp_path / "privacy.json"
    assert privacy_section(read_ledger(file)) == ""
    ledger = ledger_of(tmp_path, settings_of(rounds=40, epsilon=8.0, metrics="exact"))
    for number in range(1, 25):
        ledger.spend(number)
    section = privacy_section(read_ledger(file))
    assert f"epsilon {ledger.rounds[-1]['epsilon']:.3f} of a budget of 8, at delta 1e-05; 24 rounds" in section
    assert "which the clients sent as they are" in section
    assert section.count("\n| ") <= 13
    assert "| 24 |" in section
    file.write_text("no JSON")
    with pytest.raises(FedMoEError, match="privacy.json cannot be read"):
        read_ledger(file)
