"""The attack benchmark: attacks and measures by hand, and a small run from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.attacks.__main__ import main, outcome_table
from benchmarks.attacks.clients import TABLE, Attack, promotion, pushed, scaled
from benchmarks.attacks.leaks import auc, norm, sign, touched
from benchmarks.attacks.runs import DEFENCES, LEAKS, SHORT, Outcome, attack_of, cold_item, exposure, meets, settings_of
from benchmarks.runs import job
from data.registry import load_dataset
from fedmoe.loading import load_settings
from fedmoe.wire import NamedArrays
from fedmoe_client.learning.workbench import Workbench
from model.build import initial_arrays

TINY = (
    "name=tiny dataset=synthetic data.synthetic.users=40 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 "
    "max_seq_len=8 memory_size=8 memory_refresh=4 num_negatives=10 num_rounds=3 client_fraction=0.5 warmup_rounds=1 "
    "hosts=1"
).split()


def named(**arrays: Any) -> NamedArrays:
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}


def test_a_bad_client_scales_its_update() -> None:
    sent, trained = named(w=[1, 1], gate=1), named(w=[1, 2], gate=2)
    assert scaled(sent, trained, 1000.0)["w"].tolist() == [1, 1001]
    flipped = scaled(sent, trained, -5.0)
    assert flipped["w"].tolist() == [1, -4]
    assert (flipped["gate"].shape, float(flipped["gate"])) == ((), -4)


def test_a_push_moves_the_target_alone_and_whole_tables_come_of_rows() -> None:
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    rows = {TABLE: table[[1]] + 1, f"{TABLE}/rows": np.array([1]), "w": table[0]}
    found = pushed({TABLE: table}, rows, 3, np.array([5, 0], np.float32))
    assert found[TABLE].tolist() == [[0, 1], [3, 4], [4, 5], [11, 7]]
    assert list(found) == [TABLE, "w"]


def test_a_promotion_raises_the_target() -> None:
    settings, _ = load_settings(TINY)
    dataset = load_dataset(settings)
    bench = Workbench(settings, dataset)
    arrays = initial_arrays(settings, dataset)
    attack = Attack(kind="promote", clients=(1, 2, 3), target=7, strength=2.0)
    push = promotion(bench, arrays, attack)
    assert np.linalg.norm(push) == pytest.approx(2.0, rel=1e-5)
    bench.load(arrays)
    from fedmoe_client.learning.evaluation import model_scorer

    users, length = np.arange(dataset.interactions.num_users), 8
    before = exposure(model_scorer(bench.model), dataset.interactions, users, 7, length)
    bench.load({TABLE: arrays[TABLE] + np.eye(61, dtype=np.float32)[:, [7]] * push})
    assert exposure(model_scorer(bench.model), dataset.interactions, users, 7, length) > before


def test_exposure_by_hand() -> None:
    class Two:
        num_items = 30

        def history(self, user: int) -> np.ndarray:
            return np.array([[5, 1, 2], [1, 2, 3], [1, 2, 4]][user], np.int32)

    def scorer(contexts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        # Higher numbers are better for user 2, whose context ends with 4; lower ones for the others.
        sign = np.where(contexts[:, -1:] == 4, 1.0, -1.0)
        return (sign * candidates).astype(np.float32)

    # User 0 met item 5; for user 1 it is second of those not met; for user 2 it is the last but none.
    assert exposure(scorer, Two(), np.arange(3), 5, 3) == 0.5


def test_auc_by_hand() -> None:
    assert auc(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1.0
    assert auc(np.array([4.0, 3, 2, 1]), np.array([False, False, True, True])) == 0.0
    assert auc(np.array([1.0, 1, 1]), np.array([True, False, False])) == 0.5
    assert auc(np.array([1.0, 3, 2, 3]), np.array([False, True, False, False])) == pytest.approx(2.5 / 3)


def test_scores_tell_targets_from_negatives() -> None:
    changes = np.zeros((2, 5, 2), np.float32)
    changes[0, 1], changes[1, 1] = [0.3, 0], [0.2, 0]  # a target in both rounds
    changes[0, 2] = [-0.4, 0]  # a negative in one
    assert touched(changes).tolist() == [0, 2, 1, 0, 0]
    assert norm(changes) == pytest.approx(np.array([0, 0.5, 0.4, 0, 0]))
    changes[0, 3] = [-0.1, 0.1]
    assert sign(changes)[1] > 0.5
    assert sign(changes)[2] < -0.5
    assert sign(changes)[4] == -1


def test_every_run_has_valid_settings_and_the_same_bad_clients(tmp_path: Path) -> None:
    base = job([], SHORT)
    assert (base.federation.num_rounds, base.federation.patience) == (60, 0)
    assert base.federation.strategy_parameters == {"eta": 0.02, "tau": 1e-6}
    for name, changes in (DEFENCES | LEAKS).items():
        assert settings_of(base, changes, 7, tmp_path, name).seed == 7
    interactions = load_dataset(load_settings(TINY)[0]).interactions
    first = attack_of("x1000", interactions, 3)
    assert len(first.clients) == 4
    assert first.clients == attack_of("sign flip x5", interactions, 3).clients
    counts = np.bincount(interactions.items, minlength=61)
    assert (counts[1:] < counts[cold_item(interactions)]).mean() <= 0.2


def test_noise_meets_one_attack() -> None:
    private = [defence for defence in DEFENCES if defence.startswith("privacy")]
    assert all(meets(defence, "none") for defence in DEFENCES)
    assert all(meets(defence, "x1000") == (defence not in private) for defence in DEFENCES)
    assert [defence for defence in private if meets(defence, "promotion")] == ["privacy, epsilon 8"]


def test_a_small_benchmark_is_kept_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hosts_here: None
) -> None:
    words = [*TINY, "--attacks", "promotion", "--defences", "defaults"]
    words += ["--folder", str(tmp_path), "--leak_users", "2", "--leak_rounds", "2"]
    assert main(words) == 0
    first = capsys.readouterr().out
    for row in ("| defaults | none |", "| defaults | promotion |", "| privacy, epsilon 8 | sign |"):
        assert row in first
    assert (tmp_path / "tiny" / "attacks.png").is_file()
    # Noise comes from the seed, so that the benchmark can be repeated.
    told = [json.loads(file.read_text())["simulated"] for file in (tmp_path / "tiny" / "runs").glob("*/run.json")]
    assert told == [True] * 2
    assert main(words) == 0
    again = capsys.readouterr().out
    assert "rounds in" in first
    assert "rounds in" not in again
    assert again[again.index("## Damage") :] == first[first.index("## Damage") :]


def test_the_table_shows_failed_runs_and_means() -> None:
    grid = {
        ("defaults", "none"): [Outcome(0.2, 0.01)],
        ("defaults", "x1000"): [Outcome(error="no | model")],
        ("none", "promotion"): [Outcome(0.1), Outcome(0.2, 0.1)],
    }
    table = outcome_table(grid)
    assert "| defaults | none | 0.2000 | +0.0 | 0.0100 |" in table
    assert "| defaults | x1000 | run failed: no \\| model |" in table
    assert "| none | promotion | 0.1500 | -5.0 | 0.0500 |" in table


def test_an_unknown_defence_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--defences", "trimed rows"]) == 2
    assert "did you mean 'trimmed rows'" in capsys.readouterr().err
