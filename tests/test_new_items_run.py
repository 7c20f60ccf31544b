"""Runs with withheld items: the same figures on all engines, rows that stay as they were, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts_here import ONE_PROCESS, hosts_here
from safetensors.numpy import load_file

import sim
from data.registry import load_dataset
from fedmoe.loading import load_settings
from model.build import initial_arrays

SMALL = (
    "dataset=synthetic data.synthetic.users=30 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 max_windows=0 num_negatives=20 client_fraction=0.5 warmup_rounds=1 num_rounds=2 "
    "evaluate_every=0 dropout=0 model.item_representation=id+content data.new_items=0.2 hosts=1 client_cpus=0.5 "
    # FedAdam divides by roots that may be as small as tau: with 1e-6 it would magnify the last digits of sums.
    "strategy_parameters.tau=1e-3 federation.guards.norm_multiple=0"
).split()
ENGINES = {"ray": ["engine=ray"], "vectorized": ["engine=vectorized"], "flower": ONE_PROCESS}


@pytest.fixture(scope="module")
def runs(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run folder of the same run on each engine."""
    found = {}
    for engine, words in ENGINES.items():
        folder = tmp_path_factory.mktemp(engine) / "runs"
        given = [*SMALL, *words, f"ray_address={ray_address}", f"save_dir={folder}"]
        with hosts_here():
            assert sim.main(given) == 0
        (found[engine],) = folder.iterdir()
    return found


def result(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return found


def test_all_engines_give_the_same_figures(runs: dict[str, Path]) -> None:
    plain = result(runs["flower"])["new"]
    assert plain["global"].keys() >= {"hr@10", "hr@50", "ndcg@10", "among-new-hr@10", "rank"}
    assert result(runs["ray"])["new"] == plain
    stacked = result(runs["vectorized"])["new"]
    for kind in ("global", "personalised"):
        assert stacked[kind] == pytest.approx(plain[kind], abs=1e-6)


def test_rows_of_withheld_items_stay_as_they_were(runs: dict[str, Path]) -> None:
    settings, _ = load_settings(SMALL)
    dataset = load_dataset(settings)
    assert dataset.new is not None
    start = initial_arrays(settings, dataset)["items.ids.weight"]
    for run_dir in runs.values():
        (checkpoint,) = (run_dir / "checkpoints").iterdir()
        table = load_file(checkpoint / "arrays.safetensors")["items.ids.weight"]
        moved = np.flatnonzero((table != start).any(axis=1))
        assert not np.isin(moved, dataset.new.items).any()
        assert len(moved) > 40  # of 48 others


def test_who_met_a_withheld_item_ranks_it_and_the_report_shows_it(runs: dict[str, Path]) -> None:
    dataset = load_dataset(load_settings(SMALL)[0])
    assert dataset.new is not None
    run_dir = runs["vectorized"]
    lines = [line.split(",") for line in (run_dir / "clients.csv").read_text().splitlines()]
    assert [int(client) for client, split, *_ in lines if split == "new"] == dataset.new.users.tolist()
    report = (run_dir / "report.md").read_text()
    section = report.partition("## New items")[2].partition("\n## ")[0]
    assert section.startswith("\n\n20% of the catalogue was withheld from all training.")
    assert section.count("| nearest by content |") == section.count("| federated, server's model alone |") == 2
    shown = result(run_dir)["new"]["global"]
    assert f"{shown['hr@10']:.4f}" in section and f"{shown['among-new-hr@10']:.4f}" in section


def test_settings_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for word, said in {
        "training.loss=softmax": "softmax makes every item a negative, also data.new_items",
        "evaluation.protocol=sampled": "ranked among all items: set evaluation.protocol to full",
        "data.new_items=1": "data.new_items",
    }.items():
        assert sim.main([*SMALL, word]) == 2
        assert said in capsys.readouterr().err
