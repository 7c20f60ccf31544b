"""Bytes of masked vectors as the benchmark counts them, against those that a client sends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_deployed_run import FIRST_NODE
from test_rows_first import unions
from test_secure_run import USERS, SecureLoopback

from benchmarks.deployment import wire
from benchmarks.deployment.masking import seconds_of_a_sum
from fedmoe.wire import pack
from model.build import initial_arrays


def test_the_count_is_what_a_client_sends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = SecureLoopback(tmp_path / "run", "num_rounds=1", "warmup_rounds=1", "warmup=all")
    grid.serve()
    records = [
        reply.content.config_records["secure"]
        for reply in grid.received
        if reply.metadata.message_type == "train.masked"
    ]
    assert len(records) == USERS
    arrays = initial_arrays(grid.settings, grid.dataset)
    metrics = len(json.loads(str(records[0]["layout"]))["metrics"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "METRICS", metrics)
        counted = wire.masked_bytes(grid.settings, arrays, USERS)
    assert {len(record["words"]) for record in records} == {counted}  # type: ignore[arg-type]
    assert abs(wire.METRICS - metrics) < 8
    plain = len(pack(wire.answer(grid.settings, arrays, 0)))
    assert 0.1 * sum(array.nbytes for array in arrays.values()) < plain <= 1.2 * counted


def test_so_is_the_count_of_two_vectors(tmp_path: Path) -> None:
    words = ("num_rounds=1", "warmup_rounds=1", "warmup=all", "data.synthetic.items=800", "privacy.rows_first=on")
    grid = SecureLoopback(tmp_path / "run", *words)
    grid.serve()
    records = [
        reply.content.config_records["secure"]
        for reply in grid.received
        if reply.metadata.message_type == "train.masked" and reply.metadata.src_node_id == FIRST_NODE
    ]
    sent = sum(len(record["words"]) for record in records)  # type: ignore[arg-type]
    arrays = initial_arrays(grid.settings, grid.dataset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "METRICS", len(json.loads(str(records[0]["layout"]))["metrics"]))
        (rows,) = unions(grid)
        assert sent == wire.parted_bytes(grid.settings, arrays, USERS, len(rows))


@pytest.mark.parametrize("dropouts", [0.0, 0.3])
def test_a_sum_is_timed_to_its_end(dropouts: float) -> None:
    client, server = seconds_of_a_sum(1000, 20, 12, dropouts)
    assert 0 < client < 5 and 0 < server < 5
