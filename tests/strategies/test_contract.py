"""Each planted defect is found by the demand that it breaks, and by no other; what ships has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planted_defects import DEFECTS, Good

from strategies import STRATEGIES, build_strategy
from strategies.check.__main__ import main
from strategies.check.contract import FIRST, THEN, findings

REQUIRED: dict[str, dict[str, Any]] = {
    "fedavgm": {"server_momentum": 0.9, "server_learning_rate": 0.5},
    "fedprox": {"proximal_mu": 0.1},
    "multikrum": {"num_nodes_to_select": 3},
    "qfedavg": {"client_learning_rate": 0.1},
}
PRIVACY = "flwr.serverapp.strategy:DifferentialPrivacy{}Clipping"
NOISE = {"noise_multiplier": 0.5, "num_sampled_clients": 8, "strategy": "fedavg"}
WRAPPERS = {
    PRIVACY.format("ServerSideFixed"): NOISE | {"clipping_norm": 0.5},
    PRIVACY.format("ClientSideFixed"): NOISE | {"clipping_norm": 0.5},
    PRIVACY.format("ServerSideAdaptive"): NOISE,
    PRIVACY.format("ClientSideAdaptive"): NOISE,
}


@pytest.mark.parametrize("defective", DEFECTS)
def test_a_defect_is_found_by_its_demand_alone(defective: Any) -> None:
    found = findings(defective)
    assert [finding.demand for finding in found if finding.holds is False] == [DEFECTS[defective]]
    first = DEFECTS[defective] in FIRST
    assert [finding.demand for finding in found if finding.holds is None] == (list(THEN) if first else [])


def test_every_demand_has_a_defect_and_a_good_strategy_has_none() -> None:
    assert set(DEFECTS.values()) == {*FIRST, *THEN}
    assert all(finding.holds for finding in findings(Good))


@pytest.mark.parametrize("name", [*STRATEGIES, *WRAPPERS])
def test_every_strategy_that_ships_meets_all_demands(name: str) -> None:
    parameters = REQUIRED.get(name, WRAPPERS.get(name, {}))
    found = findings(lambda: build_strategy(name, parameters))
    assert [str(finding) for finding in found if not finding.holds] == []


@pytest.mark.parametrize("inner", ["fedadam", "fedavgm"])
def test_privacy_around_another_strategy(inner: str) -> None:
    name = PRIVACY.format("ServerSideAdaptive")
    found = findings(lambda: build_strategy(name, NOISE | {"strategy": {"name": inner, **REQUIRED.get(inner, {})}}))
    assert [str(finding) for finding in found if not finding.holds] == []


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "strategies"))
    assert main(["server_step:ServerStep", "eta=5e-1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(FIRST) + len(THEN)
    assert all(" holds: " in line for line in lines)

    assert main(["planted_defects:Transposes"]) == 1
    lines = capsys.readouterr().out.splitlines()
    (failed,) = (line for line in lines if "FAILS" in line)
    assert (
        failed == "shapes and types are kept          FAILS: round 1: 'body.weight' has shape [3, 2], expected [2, 3]"
    )
    assert "not tried: see above" in lines[-1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["fedadm"], "did you mean 'fedadam'"),
        (["qfedavg"], "'client_learning_rate' is missing"),
        (["fedadam", "eta"], "'eta' is not key=value"),
        (["fedadam", "eta={"], "eta"),
        (["fedadam", "eta=x"], "'eta' must be a number"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error
    assert len(error.splitlines()) == 1


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "usage: python -m strategies.check" in capsys.readouterr().out


def test_a_check_leaves_the_world_as_it_was() -> None:
    import random

    import numpy as np

    random.seed(5)
    np.random.seed(5)
    expected = (random.random(), float(np.random.random()))
    random.seed(5)
    np.random.seed(5)
    findings(lambda: build_strategy("fedavg", {}))
    assert (random.random(), float(np.random.random())) == expected
