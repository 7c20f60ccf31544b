from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, QFedAvg

from fedmoe.errors import FedMoEError
from strategies import STRATEGIES, build_strategy, chain

MODULE = """
from flwr.serverapp.strategy import FedAvg, Strategy

class Mine(FedAvg):
    def __init__(self, step, *, often: int = 1, **sampling):
        super().__init__(**sampling)
        self.step, self.often = step, often

class Half(Strategy):
    pass

class Picky(FedAvg):
    def __init__(self, on: bool = False, word: str = ""):
        super().__init__()
        raise ValueError("word must\\n  not be empty")

class Unresolved(FedAvg):
    def __init__(self, x: "NoSuchType" = None):
        super().__init__()

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_rules.py").write_text(MODULE)
    (tmp_path / "my_broken_rules.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_names_are_classes_and_take_the_whole_cohort() -> None:
    for name in STRATEGIES:
        parameters = {"client_learning_rate": 0.1} if name == "qfedavg" else {}
        strategy: Any = build_strategy(name, parameters)
        assert type(strategy).__name__.lower() == name
        *_, strategy = chain(strategy)  # of a wrapper: what it wraps
        assert (strategy.fraction_train, strategy.fraction_evaluate) == (1.0, 1.0)
        assert strategy.min_train_nodes == strategy.min_evaluate_nodes == strategy.min_available_nodes == 1


def test_parameters_arrive_and_win_over_the_defaults() -> None:
    strategy = build_strategy("fedadam", {"eta": 1, "tau": 1e-6, "min_train_nodes": 2})
    assert isinstance(strategy, FedAdam)
    assert (strategy.eta, strategy.tau, strategy.min_train_nodes) == (1, 1e-6, 2)


def test_qfedavg_reads_the_loss_that_clients_report() -> None:
    strategy = build_strategy("qfedavg", {"client_learning_rate": 0.1})
    assert isinstance(strategy, QFedAvg)
    assert strategy.train_loss_key == "loss"


def test_ones_own_class() -> None:
    strategy: Any = build_strategy("my_own_rules:Mine", {"step": 2, "min_train_nodes": 3})
    assert (strategy.step, strategy.often, strategy.min_train_nodes) == (2, 1, 3)
    build_strategy("my_own_rules:Unresolved", {"x": 3})


def test_a_wrapper_takes_its_strategy_by_name() -> None:
    name = "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping"
    noise = {"noise_multiplier": 1.0, "clipping_norm": 0.5, "num_sampled_clients": 10}
    strategy = build_strategy(name, noise | {"strategy": {"name": "fedadam", "eta": 0.3}})
    assert isinstance(strategy, DifferentialPrivacyServerSideFixedClipping)
    assert isinstance(strategy.strategy, FedAdam)
    assert (strategy.strategy.eta, strategy.strategy.min_train_nodes) == (0.3, 1)
    assert type(build_strategy(name, noise | {"strategy": "fedavg"}).strategy).__name__ == "FedAvg"  # type: ignore
    with pytest.raises(FedMoEError, match="'strategy' must be a name, or a mapping"):
        build_strategy(name, noise | {"strategy": 3})
    with pytest.raises(FedMoEError, match="unknown 'etaa' - did you mean 'eta'"):
        build_strategy(name, noise | {"strategy": {"name": "fedadam", "etaa": 0.3}})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fedadm",
            "federation.strategy 'fedadm' is not known - did you mean 'fedadam'.*fedavg, .*package.module:Class",
        ),
        ("no_such_module:X", "cannot import no_such_module: ModuleNotFoundError"),
        ("my_broken_rules:X", "cannot import my_broken_rules: ZeroDivisionError"),
        ("my_own_rules:mine", "my_own_rules has no 'mine' - did you mean 'Mine'"),
        ("my_own_rules:NUMBER", "not a subclass of flwr.serverapp.strategy.strategy.Strategy"),
        ("flwr.server.strategy:FedAvg", "not a subclass of flwr.serverapp.strategy.strategy.Strategy"),
        ("my_own_rules:Half", "the methods aggregate_evaluate, .* are missing"),
        (":X", "is not known"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(FedMoEError, match=message):
        build_strategy(name, {})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "qfedavg",
            {"qq": 1, "client_learning": 2},
            r"of qfedavg: unknown 'qq'.*; unknown 'client_learning' - did you mean 'client_learning_rate'\?; "
            "'client_learning_rate' is missing",
        ),
        ("fedadam", {"eta": "1e-3"}, "'eta' must be a number, is '1e-3', write 1.0e-6 for 1e-6"),
        (
            "fedadam",
            {"eta": True, "tau": float("nan")},
            "'eta' must be a number, is True; 'tau' must be a number, is nan",
        ),
        ("krum", {"num_malicious_nodes": 1.5}, "'num_malicious_nodes' must be a whole number, is 1.5"),
        ("fedavg", {"weighted_by_key": 3}, "'weighted_by_key' must be text, is 3"),
        ("my_own_rules:Picky", {"on": 1}, "'on' must be true or false, is 1"),
        ("my_own_rules:Picky", {}, "of my_own_rules:Picky: word must not be empty"),
        ("my_own_rules:Mine", {"steps": 1}, "'step' is missing"),
        (
            "my_own_rules:Mine",
            {"step": 1, "nonsense": 2},
            "of my_own_rules:Mine: .*unexpected keyword argument 'nonsense'",
        ),
        ("fedtrimmedavg", {"beta": 0.7}, "of fedtrimmedavg: `beta` must be in the range"),
    ],
)
def test_parameters_that_do_not_fit(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(FedMoEError, match=message):
        build_strategy(name, parameters)
