"""Whose private parameters help: the user's own, anybody's, or the mean of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from benchmarks import personalisation
from benchmarks.personalisation import (
    MEAN,
    OTHER,
    OWN,
    SERVER,
    private_parameters,
    ranks_of_run,
    slice_table,
    table,
)
from data.registry import load_dataset
from errors import FedMoEError
from fedmoe_server.checkpoints import CLIENTS, INDEX
from fedmoe_server.client_ranks import read_client_ranks
from settings_loading import load_settings
from sim import simulate
from simulation.client_files import write_clients, write_index
from simulation.flower_runtime import records_to_bytes

WORDS = (
    "name=tiny dataset=synthetic data.synthetic.users=30 data.synthetic.items=400 dim=8 attention_dim=8 blocks=1 "
    "max_seq_len=8 memory_size=8 memory_refresh=4 num_negatives=10 num_rounds=4 client_fraction=0.5 warmup_rounds=1 "
    "learning_rate=1.0 client_cpus=0.5"
).split()


def test_own_parameters_rank_as_the_clients_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Private item vectors too, so that what all users share of the catalogue's side must not be taken for granted.
    shared = "shared=[backbone,visual_expert,semantic_expert]"
    settings, _ = load_settings([*WORDS, f"save_dir={tmp_path}", shared])
    run_dir = simulate(settings)
    dataset = load_dataset(settings.data, settings.seed)
    found = ranks_of_run(run_dir, settings, dataset)
    clients = [rank for rank in read_client_ranks(run_dir) if rank.split == "test"]
    assert found[SERVER].tolist() == [rank.common for rank in clients]
    assert found[OWN].tolist() == [rank.personal for rank in clients]
    # A client that never trained after the warm-up has nothing private, whoever else's parameters are tried.
    kept = private_parameters(run_dir, 30)
    absent = [user for user in range(30) if user not in kept]
    assert absent
    for kind in (OWN, MEAN, OTHER):
        assert np.array_equal(found[kind][absent], found[SERVER][absent])
        assert not np.array_equal(found[kind], found[SERVER])
    assert not np.array_equal(found[OTHER], found[OWN])
    capsys.readouterr()
    assert personalisation.main([str(run_dir), str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "| the user's own | the server's | " in shown
    assert "| head item (100 or more) | " not in shown  # 30 users make no popular item
    assert "| tail item (fewer than 20) | " in shown


def test_tables_by_hand() -> None:
    rows = {SERVER: [np.array([2.0, 8.0])], OWN: [np.array([1.0, 8.0])]}
    rows |= {MEAN: rows[SERVER], OTHER: rows[SERVER]}
    # NDCG@10 1 / log2(3) and 1 / log2(9) against 1 and 1 / log2(9); the root of 1/2 for the two ranks.
    assert table(rows).splitlines()[2].startswith("| the user's own | the server's | 1.390 | ")
    assert table(rows).splitlines()[2].split(" | ")[4] == "0.707"
    first = slice_table(rows, {"first": np.array([True, False])}).splitlines()[2]
    assert first == "| first | 1 | 1.585 | 1.000 | 0.500 | 1.000 |"


def test_a_run_without_private_groups_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("{}")
    (tmp_path / CLIENTS).mkdir()
    write_clients(tmp_path / CLIENTS / "a.bin", [(0, records_to_bytes(RecordDict()))])
    write_index(tmp_path / CLIENTS, 1, {"a.bin": 1})
    with pytest.raises(FedMoEError, match="no client keeps private parameters"):
        private_parameters(tmp_path, 1)


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert personalisation.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
