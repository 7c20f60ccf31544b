"""Ranks of the single clients."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmoe.errors import FedMoEError
from fedmoe_server.report.client_ranks import ClientRank, ranks_of, read_client_ranks, write_client_ranks

RANKS = [ClientRank(3, "test", 4.5, 7.0), ClientRank(4, "test", 2.0, 1.0)]


def reply(node: int, **metrics: float) -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    asked = Message(RecordDict(), node, "evaluate")
    return Message(
        RecordDict({"metrics": MetricRecord({k.replace("_", "-"): v for k, v in metrics.items()})}), reply_to=asked
    )


def test_ranks_are_sorted_by_client_and_survive_the_file(tmp_path: Path) -> None:
    replies = [reply(9, rank=2.0, global_rank=1.0), reply(7, rank=4.5, global_rank=7.0), reply(8, hr=1.0)]
    found = ranks_of("test", replies, {7: 3, 8: 5, 9: 4})
    assert found == RANKS
    write_client_ranks(tmp_path, found)
    assert read_client_ranks(tmp_path) == RANKS


def test_no_file_is_no_ranks_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    assert read_client_ranks(tmp_path) == []
    (tmp_path / "clients.csv").write_text("client,split\n1,test\n")
    with pytest.raises(FedMoEError, match="clients.csv"):
        read_client_ranks(tmp_path)


@pytest.mark.parametrize("rank", [0.0, -3.0, math.nan, math.inf])
def test_what_cannot_be_a_rank_is_left_out_and_refused_in_a_file(tmp_path: Path, rank: float) -> None:
    replies = [reply(9, rank=rank, global_rank=1.0), reply(7, rank=1.0, global_rank=rank), reply(8, rank=1.0)]
    assert ranks_of("test", replies, {7: 3, 8: 5, 9: 4}) == []
    write_client_ranks(tmp_path, [ClientRank(4, "test", rank, 1.0)])
    with pytest.raises(FedMoEError, match="client 4 has a rank"):
        read_client_ranks(tmp_path)
