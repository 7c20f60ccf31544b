"""Sweeps: which points a file describes, and the table and picture of what they reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmoe.errors import FedMoEError
from fedmoe.loading import CONFIGS, load_points
from fedmoe.settings import Settings
from fedmoe_server.report.sweep import run_sweep


def points_of(tmp_path: Path, text: str, *words: str) -> dict[str, Settings]:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return load_points([str(path), *words])[0]


def test_a_mapping_means_every_combination(tmp_path: Path) -> None:
    points = points_of(tmp_path, "sweep: {model.gate_init: [0.0, 0.5], fusion: [residual, score]}", "dim=32")
    assert {label: (s.model.gate_init, s.model.fusion, s.model.dim) for label, s in points.items()} == {
        "gate_init=0.0, fusion=residual": (0.0, "residual", 32),
        "gate_init=0.0, fusion=score": (0.0, "score", 32),
        "gate_init=0.5, fusion=residual": (0.5, "residual", 32),
        "gate_init=0.5, fusion=score": (0.5, "score", 32),
    }


def test_a_list_means_these_points(tmp_path: Path) -> None:
    points = points_of(tmp_path, "seed: 3\nsweep: [{label: wide, dim: 128}, {blocks: 1}]")
    assert {label: (s.model.dim, s.model.blocks, s.seed) for label, s in points.items()} == {
        "wide": (128, 2, 3),
        "point 2": (64, 1, 3),
    }


def test_without_a_sweep_there_is_one_point() -> None:
    assert load_points(["num_rounds=3"])[0][""].federation.num_rounds == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sweep: {gate_int: [1]}", "unknown key 'gate_int' - did you mean 'model.gate_init'"),
        ("sweep: {dim: [63, -1]}", r"dim=63: .*\n.*dim=-1: "),
        ("sweep: 5", "sweep: must map keys"),
        ("sweep: [{label: a}, {label: a}]", "labels of their own"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(FedMoEError, match=complaint):
        points_of(tmp_path, text)


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("sweep-*.yaml")))
def test_every_shipped_sweep_has_points(config: str) -> None:
    assert len(load_points([config])[0]) > 1


def test_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def simulate(settings: Settings) -> Path:
        run = settings.save_dir / settings.name
        run.mkdir(parents=True)
        kinds = {kind: {"hr@10": 0.5, "ndcg@10": settings.model.gate_init} for kind in ("personalised", "global")}
        (run / "result.json").write_text(json.dumps({"rounds": 2, "best_round": 2, "validation": kinds, "test": kinds}))
        lines = [{"round": n, "train": {"gate": 0.1 * n}, "validation": {"ndcg@10": 0.2}} for n in (1, 2)]
        (run / "settings.yaml").write_text(f"name: {settings.name}")
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run

    points = points_of(tmp_path, "name: gates\nsweep: {gate_init: [0.25, 0.75]}", f"save_dir={tmp_path / 'runs'}")
    folder = run_sweep(points, simulate)
    assert folder.name.endswith("-gates")
    text = (folder / "sweep.md").read_text()
    assert "| [gate_init=0.25](gate_init-0.25/report.md) | 2 | 2 | 0.2500 | 0.5000 | 0.2500 | 0.2500 |" in text
    assert (folder / "sweep.png").stat().st_size > 10_000
    assert "point 2 of 2: gate_init=0.75" in capsys.readouterr().out
