"""Interactions and a table of items of one's own, in one command, with real pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sim

KINDS = {"forest": (20, 140, 40), "sea": (20, 60, 180), "desert": (220, 180, 90)}
QUICK = (
    "num_rounds=2 client_fraction=0.5 dim=8 attention_dim=8 blocks=1 max_seq_len=10 memory_size=10 memory_refresh=5 "
    "num_negatives=10 hosts=1 client_cpus=0.5"
).split()


def test_own_data_in_one_command(
    hosts_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    items = ["item_id,title,landscape,picture"]
    for number in range(30):
        kind = list(KINDS)[number % 3]
        noisy = np.clip(rng.normal(KINDS[kind], 30, (24, 32, 3)), 0, 255).astype(np.uint8)
        if number:  # one item has no picture
            Image.fromarray(noisy).save(tmp_path / "pictures" / f"{number}.jpg")
        items.append(f"{number},View {number} of the {kind},{kind},{f'pictures/{number}.jpg' if number else ''}")
    clicks = ["user_id,item_id,timestamp"]
    for user in range(12):
        clicks += [f"{user},{item},{10**9 + when}" for when, item in enumerate(rng.permutation(30)[:10])]
    (tmp_path / "items.csv").write_text("\n".join(items) + "\n")
    (tmp_path / "clicks.csv").write_text("\n".join(clicks) + "\n")
    monkeypatch.chdir(tmp_path)
    assert sim.main(["data_file=clicks.csv", "item_file=items.csv", *QUICK]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "clicks.csv read as csv (user_id, item_id, timestamp): 12 users, 30 items, 120 interactions" in told
    assert "items.csv has 30 of the 30 items (title: text, landscape: attributes, picture: picture)" in told
    for said in (
        "visual by thumbnails of 29 items, 1 have none",
        "text by words of 30",
        "attributes by frequency of 30",
    ):
        assert said in told
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.endswith("-clicks")
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["train"]
    assert sum(last[f"router-{name}"] for name in ("visual", "text", "attributes")) == pytest.approx(1.0)
