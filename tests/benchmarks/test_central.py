"""Central training beside a federated run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks import central
from benchmarks.central import latest_run, passes
from fedmoe.loading import load_settings
from fedmoe.settings import Settings

WORDS = (
    "dataset=synthetic data.synthetic.users=30 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=8 "
    "memory_size=8 memory_refresh=4 num_negatives=10 num_rounds=4 client_fraction=0.5"
).split()


def run_folder(folder: Path) -> Path:
    settings, _ = load_settings(WORDS)
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (folder / "metrics.jsonl").write_text("")
    kinds = {kind: {"hr@10": 0.5, "ndcg@10": 0.25} for kind in ("global", "personalised")}
    result = {"validation": kinds, "test": kinds, "status": "completed", "best_round": 4, "rounds": 4}
    (folder / "result.json").write_text(
        json.dumps({**result, "stopped_early": False, "seconds": 1.0, "failed_replies": 0})
    )
    return folder


def test_central_figures_join_the_runs_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run_folder(tmp_path / "runs" / "a")
    assert central.main([str(run_dir), "--batch_size", "8"]) == 0
    shown = capsys.readouterr().out
    assert "2 epochs of batches of 8 windows" in shown
    assert set(json.loads((run_dir / "baselines.json").read_text())) == {"central"}
    assert "central" in (run_dir / "report.md").read_text()


def test_the_latest_completed_run_is_taken(tmp_path: Path) -> None:
    for name in ("20260101-b", "20260102-a"):
        run_folder(tmp_path / name)
    (tmp_path / "20260103-unfinished").mkdir()
    assert latest_run(tmp_path).name == "20260102-a"


def test_without_a_run_there_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert central.main([str(tmp_path)]) == 2
    assert "settings.yaml" in capsys.readouterr().err


def test_passes_are_those_of_the_rounds() -> None:
    assert passes(load_settings(["num_rounds=100", "client_fraction=0.2", "local_epochs=2"])[0]) == 40
    assert passes(Settings.model_validate({"federation": {"num_rounds": 1}})) == 1
