"""The command lines of the reference document, on small files of the kinds that it names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import sim

# As the document prints them, without "python scripts/train_fedmem.py".
BASIC = (
    "--data_dir data --data_file ml100k_ratings_processed.dat --visual_file clip_features_fixed.pt "
    "--text_file item_text_features.pt --num_rounds 30 --gating_init 0.1"
).split()
PARTIAL = [*BASIC, "--partial_aggregation_warmup_rounds", "20"]
SAVED = [*BASIC, "--save_dir", "checkpoints/residual_baseline"]
USERS, ITEMS = 20, 40
QUICK = (
    "dim=8 attention_dim=8 blocks=1 max_seq_len=10 memory_size=10 memory_refresh=5 num_negatives=20 hosts=1 "
    "client_cpus=0.5"
).split()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose ``data`` holds ratings of 20 users, and features whose row is the item's id."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    lines = [
        f"{user} {item} {rng.integers(1, 6)} {881250949 + 60 * when}"
        for user in range(1, USERS + 1)
        for when, item in enumerate(rng.permutation(ITEMS)[:12] + 1)
    ]
    lines += [f"{USERS + 1} {item} 3 881250949" for item in range(1, ITEMS + 1)]  # every item occurs
    (data / "ml100k_ratings_processed.dat").write_text("\n".join(lines) + "\n")
    for name, width in (("clip_features_fixed.pt", 12), ("item_text_features.pt", 6)):
        rows = torch.from_numpy(rng.normal(size=(ITEMS + 1, width)).astype(np.float32))
        rows[0] = 0
        torch.save(rows, data / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_document_s_commands_train_on_the_files_they_name(
    folder: Path, hosts_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sim.main([*PARTIAL, *SAVED[-2:], *QUICK]) == 0
    told = capsys.readouterr().out
    assert f"ml100k_ratings_processed.dat read as ratings: {USERS + 1} users, {ITEMS} items" in told
    assert f"visual features of {ITEMS} items; text features of {ITEMS} items" in told
    (run_dir,) = (folder / "checkpoints" / "residual_baseline").iterdir()
    settings = yaml.safe_load((run_dir / "settings.yaml").read_text())
    assert settings["data"]["dataset"] == "file"
    rounds = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [each["phase"] for each in rounds] == ["warmup"] * 20 + ["main"] * 10
    first = rounds[0]["train"]
    assert first["gate"] == pytest.approx(0.1, abs=0.04)
    assert 0 < first["router-visual"] < 1 and first["router-text"] == pytest.approx(1 - first["router-visual"])


@pytest.mark.parametrize("missing", ["ml100k_ratings_processed.dat", "clip_features_fixed.pt"])
def test_a_file_of_the_command_that_is_missing_ends_it(
    folder: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data" / missing).unlink()
    assert sim.main(BASIC) == 2
    assert missing in capsys.readouterr().err
    assert not (folder / "runs").exists()
