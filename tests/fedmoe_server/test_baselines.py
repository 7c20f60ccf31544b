"""Baselines beside a run's own figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmoe.errors import FedMoEError
from fedmoe_server.report.report import comparison
from fedmoe_server.report.run_folder import add_baseline, baselines_of


def splits(value: float) -> dict[str, dict[str, float]]:
    return {split: {"hr@10": value, "ndcg@10": value / 2} for split in ("validation", "test")}


def test_comparison_shows_baselines_and_the_run(tmp_path: Path) -> None:
    result = {split: {kind: splits(0.2)[split] for kind in ("global", "personalised")} for split in splits(0)}
    (tmp_path / "result.json").write_text(json.dumps(result))
    add_baseline(tmp_path, "popularity", splits(0.3))
    add_baseline(tmp_path, "central", splits(0.5))
    add_baseline(tmp_path, "popularity", splits(0.1))
    assert list(baselines_of(tmp_path)) == ["popularity", "central"]
    rows = [line.split()[-4:] for line in comparison(tmp_path).splitlines()[1:]]
    assert rows == [["0.1000", "0.0500"] * 2, ["0.5000", "0.2500"] * 2, *[["0.2000", "0.1000"] * 2] * 2]


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match="result.json holds no result"):
        comparison(tmp_path)
    (tmp_path / "baselines.json").write_text("{")
    with pytest.raises(FedMoEError, match="baselines.json cannot be read"):
        baselines_of(tmp_path)
