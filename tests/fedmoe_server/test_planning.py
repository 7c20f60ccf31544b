"""Defaults that follow from a run's size, its plan, and why it may be hopeless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sim
from fedmoe.loading import from_run_config, load_settings, to_run_config
from fedmoe.settings import Settings
from fedmoe_server.planning.defaults import Size, cohort_of, hopeless, passes, trained_windows, with_defaults
from fedmoe_server.planning.effects import without_effect
from fedmoe_server.planning.plan import expected_seconds, plan_lines

ML_100K = Size(943, 1682, np.full(943, 2))
BEAUTY = Size(22_363, 12_101, np.ones(22_363, np.int64))


def planned(size: Size, *words: str) -> Settings:
    return with_defaults(load_settings(list(words))[0], size)


def test_the_default_job_is_as_it_was() -> None:
    assert planned(ML_100K) == Settings()


def test_few_rounds_are_of_all_clients_with_more_work_and_larger_steps() -> None:
    settings = planned(ML_100K, "num_rounds=30")
    federation = settings.federation
    assert federation.client_fraction == 1.0
    assert federation.strategy_parameters == {"eta": 0.024, "tau": 1e-6}  # .005 * sqrt(700 / 30)
    assert (settings.training.local_epochs, settings.training.max_windows) == (2, 0)
    assert settings.model.item_representation == "id+content"
    assert (federation.evaluate_every, federation.checkpoint_every) == (5, None)
    assert planned(ML_100K, "num_rounds=10").federation.strategy_parameters["eta"] == 0.042
    assert planned(ML_100K, "num_rounds=1").federation.strategy_parameters["eta"] == 0.05


def test_many_users_are_met_less_often_and_sampled() -> None:
    federation = planned(BEAUTY).federation
    assert cohort_of(planned(BEAUTY), BEAUTY) == 667  # 200,000 trainings in 300 rounds
    assert federation.evaluate_clients == 1000
    # Training alone takes some five minutes; ranking 12,101 items for everybody, twice on two splits, takes longer.
    assert 600 < expected_seconds(planned(BEAUTY, "engine=vectorized", "hosts=2"), BEAUTY, 1) < 2400  # one core or two
    few = Size(20, 50, np.ones(20, np.int64))
    assert cohort_of(planned(few), few) == 20


def test_a_large_catalogue_is_stepped_where_it_was_trained() -> None:
    large = Size(100_000, 1_000_000, np.ones(100_000, np.int64))
    found = planned(large).federation
    assert found.strategy == "lazyadam" and found.strategy_parameters == planned(BEAUTY).federation.strategy_parameters
    assert planned(large, "strategy=fedadam").federation.strategy == "fedadam"
    assert planned(large, "strategy=lazyadam", "num_rounds=30").federation.strategy_parameters["eta"] == 0.024
    assert planned(BEAUTY).federation.strategy == "fedadam"


def test_long_runs_are_evaluated_as_often() -> None:
    federation = planned(ML_100K, "num_rounds=3200").federation
    assert (federation.evaluate_every, federation.checkpoint_every, federation.warmup_rounds) == (320, 320, 320)
    assert federation.strategy_parameters["eta"] == 0.005


def test_what_was_given_stays() -> None:
    words = "client_fraction=0.2 strategy_parameters.eta=0.005 local_epochs=1 max_windows=2 evaluate_every=35".split()
    words += ["item_representation=id", "checkpoint_every=70", "num_rounds=30"]
    assert planned(ML_100K, *words) == load_settings(words)[0]
    own = planned(ML_100K, "strategy=fedavg", "num_rounds=30")
    assert own.federation.strategy_parameters == {} and own.training == Settings().training


def test_windows_and_passes_by_hand() -> None:
    size = Size.of(np.array([0, 5, 9 + 100, 109 + 56]), 10, 50)  # 5, 104 and 56 items: 2, 101 and 53 targets
    assert size.windows.tolist() == [1, 3, 2]
    settings = load_settings(["num_rounds=6", "client_fraction=0.34", "local_epochs=2"])[0]
    assert trained_windows(settings, size) == pytest.approx(2 * (1 + 2 + 2) / 3)
    assert passes(settings, size) == pytest.approx(6 * 1 * (10 / 3) / 6)


def test_a_hopeless_run_is_told_why() -> None:
    assert hopeless(Settings()) == []
    words = ["num_rounds=30", "strategy_parameters.eta=0.005", "client_fraction=0.05"]
    few, small = hopeless(load_settings(words)[0])
    assert "30 rounds of 5% of the clients with local_epochs 1 train each client 1.5 times" in few
    assert (
        "eta 0.005 lets a parameter move by at most about 0.075 in 30 rounds" in small
        and "0.024 would do more" in small
    )


def test_the_plan_says_clients_passes_time_and_bytes() -> None:
    lines = " ".join(plan_lines(planned(ML_100K, "hosts=1"), ML_100K, ["text"], 1_000_000))
    assert "300 rounds of 47 of 943 clients, fedadam with learning rate 0.0076; experts: text" in lines
    assert "evaluated 10 times on 943 users" in lines and "on 1 idle cores" in lines and "14 GB to clients" in lines


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["gbce_calibration=0.5"], "training.gbce_calibration"),
        (["loss=softmax", "num_negatives=5"], "training.num_negatives"),
        (["windows=latest", "max_windows=3"], "training.max_windows"),
        (["num_candidates=50"], "evaluation.num_candidates"),
        (["mixture=false", "gate_init=0.1"], "model.gate_init"),
        (["fusion=score", "gate_init=0.1"], "model.gate_init"),
        (["warmup_rounds=0", "warmup=all"], "federation.warmup"),
        (["num_rounds=5", "shared=all"], "federation.shared"),
        (["evaluate_every=0", "patience=3"], "federation.patience"),
        (["engine=ray", "stack_size=3"], "simulation.stack_size"),
        (["engine=flower", "hosts=3"], "simulation.hosts"),
        (["device=cuda"], "simulation.device"),
        (["privacy.delta=1e-6"], "privacy.delta"),
        (["min_clients=3"], "deployment.min_clients"),
    ],
)
def test_a_setting_without_effect_is_a_warning(words: list[str], key: str) -> None:
    (warning,) = without_effect(load_settings(words)[0])
    assert warning.startswith(f"{key} has no effect: ")


def test_settings_with_effect_are_none() -> None:
    words = ["loss=gbce", "gbce_calibration=0.5", "gate_init=0.1", "privacy.epsilon=8", "delta=1e-6"]
    assert without_effect(load_settings(words)[0]) == []
    useless = load_settings(["min_clients=3", *words])[0]
    assert without_effect(useless) and not without_effect(from_run_config(to_run_config(useless)))


def test_a_dry_run_reads_and_plans_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clicks.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"{u},{u + i},{10**9 + i}\n" for u in range(9) for i in range(7))
    )
    assert sim.main(["data_file=clicks.csv", "num_rounds=2", "client_fraction=0.5", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "clicks.csv read as csv (user_id, item_id, timestamp): 9 users, 15 items, 63 interactions" in told.out
    assert "plan: 2 rounds of 4 of 9 clients" in told.out
    assert "warning: 2 rounds of 50% of the clients" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["clicks.csv"]
    for words, complaint in ((["text_file=none.npy"], "none.npy"), (["strategy=fedadm"], "did you mean 'fedadam'")):
        assert sim.main(["data_file=clicks.csv", "--dry-run", *words]) == 2
        assert complaint in capsys.readouterr().err
