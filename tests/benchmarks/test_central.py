"""Central training beside a federated run."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
from small_comparison import Compared

from benchmarks.quality.__main__ import main
from benchmarks.quality.central import latest_run, passes
from fedmoe.loading import load_settings
from fedmoe.settings import Settings


def test_central_figures_join_the_runs_report(
    compared: Compared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = copytree(compared.run_dir, tmp_path / "run")
    assert "| central |" not in (run_dir / "report.md").read_text()
    assert main(["central", str(run_dir), "--batch_size", "8"]) == 0
    shown = capsys.readouterr().out
    assert "2 epochs of batches of 8 windows" in shown
    assert set(json.loads((run_dir / "baselines.json").read_text())) == {"central", "popularity"}
    assert "central" in (run_dir / "report.md").read_text()


def test_the_latest_completed_run_is_taken(tmp_path: Path) -> None:
    for name in ("20260101-b", "20260102-a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text("{}")
    (tmp_path / "20260103-unfinished").mkdir()
    assert latest_run(tmp_path).name == "20260102-a"


def test_without_a_run_there_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["central", str(tmp_path)]) == 2
    assert "settings.yaml" in capsys.readouterr().err


def test_passes_are_those_of_the_rounds() -> None:
    assert passes(load_settings(["num_rounds=100", "client_fraction=0.2", "local_epochs=2"])[0]) == 40
    assert passes(Settings.model_validate({"federation": {"num_rounds": 1}})) == 1
