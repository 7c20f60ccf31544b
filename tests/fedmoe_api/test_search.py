"""Searches: which trials a file describes, what is refused, and one that is interrupted and resumed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import ray

import sim
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_points, load_settings

SMALL = """
name: tiny
search: {trials: 4, at_once: 2, grace_rounds: 2, reduction: 2, parameters: {eta: {log_uniform: [0.001, 0.1]}}}
data: {dataset: synthetic, synthetic: {users: 20, items: 60}}
model: {dim: 8, attention_dim: 8, blocks: 1, max_seq_len: 10, memory_size: 10, memory_refresh: 5}
training: {num_negatives: 20}
federation: {num_rounds: 4, client_fraction: 0.5, warmup_rounds: 2, evaluate_every: 2, checkpoint_every: 2}
simulation: {client_cpus: 1}  # two trials take both CPUs
""".replace("{eta:", "{strategy_parameters.eta:")


def written(tmp_path: Path, text: str) -> str:
    (tmp_path / "own.yaml").write_text(text)
    return str(tmp_path / "own.yaml")


def test_trials_are_drawn_from_lists_and_ranges(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "search: {trials: 30, parameters: {dropout: [0.1, 0.3], strategy_parameters.eta: {log_uniform: [0.001, 0.1]}, "
        "local_epochs: {integers: [1, 3]}, learning_rate: {uniform: [0.1, 0.2]}}}",
    )
    points = load_points([path, "dim=32"])
    trials = list(points.settings.values())
    assert points.settings == load_points([path, "dim=32"]).settings and len(trials) == 30
    assert {trial.model.dropout for trial in trials} == {0.1, 0.3}
    assert {trial.training.local_epochs for trial in trials} == {1, 2, 3}
    assert all(0.1 <= trial.training.learning_rate <= 0.2 for trial in trials)
    rates = [trial.federation.strategy_parameters["eta"] for trial in trials]
    assert all(0.001 <= rate <= 0.1 for rate in rates) and 8 <= sum(rate < 0.01 for rate in rates) <= 22
    assert {trial.model.dim for trial in trials} == {32}
    assert next(iter(points.settings)).startswith("trial 1: dropout=0.")


def test_no_trial_is_there_twice(tmp_path: Path) -> None:
    points = load_points([written(tmp_path, "search: {trials: 9, parameters: {dim: [32, 64], blocks: [1, 2]}}")])
    assert len(points.settings) == 4


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("{trails: 2, parameters: {dim: [8]}}", "unknown key 'search.trails' - did you mean 'search.trials'"),
        ("{trials: 0, parameters: {dim: [8]}}", "search.trials = 0: "),
        ("{trials: 2}", "search.parameters: field required"),
        ("{parameters: {dimm: [8]}}", "unknown key 'dimm' - did you mean 'dim'"),
        ("{parameters: {dim: [-1]}}", "trial 1: dim=-1: "),
        ("{parameters: {dim: 8}}", "search.parameters.dim = 8: must be a list of values, or"),
        ("{parameters: {dim: []}}", "search.parameters.dim"),
        ("{parameters: {eta: {log-uniform: [1, 2]}}}", "search.parameters.eta: must be a list of values, or"),
        ("{parameters: {dropout: {uniform: [0.3, 0.1]}}}", r"low \(0.3\) must be below high"),
        ("{parameters: {dropout: {log_uniform: [0, 0.1]}}}", "above 0 for log_uniform"),
        ("{parameters: {dim: [8]}}\nsweep: {dim: [8]}", "leave one out"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_runs(tmp_path: Path, section: str, complaint: str) -> None:
    with pytest.raises(FedMoEError, match=complaint):
        load_points([written(tmp_path, f"search: {section}")])


def test_the_shipped_search_has_trials() -> None:
    assert len(load_points(["search"]).settings) == 8


def test_without_tune_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    monkeypatch.delattr(ray, "tune", raising=False)
    monkeypatch.delitem(sys.modules, "simulation.ray.tuning", raising=False)
    assert sim.main([written(tmp_path, SMALL), f"save_dir={tmp_path / 'runs'}"]) == 2
    assert capsys.readouterr().err == "error: a search needs Ray Tune: pip install 'fedmoe[tune]'\n"
    assert not (tmp_path / "runs").exists()


def test_a_search_is_interrupted_and_goes_on(
    ray_address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.tune", exc_type=ImportError)
    runs, before = tmp_path / "runs", signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        while not list(runs.glob("*-tiny/*-trial-*/report.md")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()
    assert sim.main([written(tmp_path, SMALL), f"save_dir={runs}", f"ray_address={ray_address}"]) == 130
    assert signal.getsignal(signal.SIGINT) is before and not ray.is_initialized()
    (folder,) = runs.iterdir()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*-trial-*/result.json")}
    assert 1 <= len(done) < 4
    assert sim.main(["--resume", str(folder)]) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*-trial-*/result.json")}
    assert sorted(name[-7:] for name in results) == ["trial-1", "trial-2", "trial-3", "trial-4"]
    assert {result["status"] for result in results.values()} == {"completed"}
    assert "stopped early" in capsys.readouterr().out or {result["rounds"] for result in results.values()} == {4}

    rows = [line for line in (folder / "search.md").read_text().splitlines() if line.startswith("| [trial ")]
    scores = [float(row.split("|")[4]) for row in rows]
    assert len(rows) == 4 and scores == sorted(scores, reverse=True)
    best, _ = load_settings([str(folder / "best.yaml")])
    label = rows[0].split("[")[1].split("]")[0]
    assert best == load_points([str(folder / "search.yaml")]).settings[label]
