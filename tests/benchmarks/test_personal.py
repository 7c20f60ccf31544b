"""Whose private parameters help: the user's own, anybody's, or the mean of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import RecordDict
from small_comparison import WORDS, Compared

from benchmarks.quality.__main__ import main
from benchmarks.quality.personal import (
    MEAN,
    OTHER,
    OWN,
    SERVER,
    gain_by_slice,
    private_parameters,
    ranks_of_run,
    whose_table,
)
from data.registry import load_dataset
from fedmoe.loading import load_settings, read_yaml, settings_from
from fedmoe_server.report.client_ranks import read_client_ranks
from simulation.flower_runtime import records_to_bytes
from simulation.ray.client_files import CLIENTS_FILE, write_clients


def run_folder(folder: Path, words: Sequence[str], completed: bool = True) -> str:
    """Write the settings of a run, and its result if it has completed."""
    settings, _ = load_settings([*WORDS, *words])
    folder.mkdir()
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    if completed:
        kinds = {kind: {"hr@10": 0.5, "ndcg@10": 0.25} for kind in ("global", "personalised")}
        (folder / "result.json").write_text(json.dumps({"validation": kinds, "test": kinds}))
    return str(folder)


def test_own_parameters_rank_as_the_clients_did(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = compared.run_dir
    settings = settings_from(read_yaml(str(run_dir / "settings.yaml")))
    dataset = load_dataset(settings)
    found = ranks_of_run(run_dir, settings, dataset)
    clients = [rank for rank in read_client_ranks(run_dir) if rank.split == "test"]
    assert found[SERVER].tolist() == [rank.common for rank in clients]
    assert found[OWN].tolist() == [rank.personal for rank in clients]
    unchanged = found[OWN] == found[SERVER]
    for kind in (MEAN, OTHER):  # a client that never trained after the warm-up has nothing private to exchange
        assert not np.array_equal(found[kind], found[SERVER])
    assert 0 < unchanged.sum() < 30
    assert not np.array_equal(found[OTHER], found[OWN])
    capsys.readouterr()
    assert main(["personal", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "| the user's own | the server's | " in shown
    assert "| head item (100 or more) | " not in shown  # 30 users make no popular item
    assert "| tail item (fewer than 20) | " in shown


def test_tables_by_hand() -> None:
    rows = {SERVER: [np.array([2.0, 8.0])], OWN: [np.array([1.0, 8.0])]}
    rows |= {MEAN: rows[SERVER], OTHER: rows[SERVER]}
    # NDCG@10 1 / log2(3) and 1 / log2(9) against 1 and 1 / log2(9); the root of 1/2 for the two ranks.
    assert whose_table(rows).splitlines()[2] == "| the user's own | the server's | 1.390 |  | 0.707 |  |"
    first = gain_by_slice(rows, {"first": np.array([True, False])}).splitlines()[2]
    assert first == "| first | 1 | 1.585 |  | 0.500 |  |"


def test_clients_that_lack_a_private_parameter_are_left_out(tmp_path: Path) -> None:
    write_clients(tmp_path / CLIENTS_FILE, 1, [(0, records_to_bytes(RecordDict()))])
    assert private_parameters(tmp_path, 1, ["gate.value"]) == {}
    assert private_parameters(tmp_path, 1, []) == {}


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_folder(tmp_path / "1", ["seed=1"])
    other = {
        "same seed": run_folder(tmp_path / "2", ["seed=1"]),
        "more than their seeds": run_folder(tmp_path / "3", ["seed=2", "memory_decay=3"]),
        "name the folder of a completed run": run_folder(tmp_path / "4", ["seed=2"], completed=False),
        "other histories": run_folder(tmp_path / "5", ["seed=2"]),  # which the seed makes
        "result.json holds no result": str(tmp_path),
    }
    for problem, folder in other.items():
        assert main(["personal", one, folder]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        assert problem in message
    assert main(["personal", one]) == 2
    assert "no checkpoint" in capsys.readouterr().err
