"""What a reply stands for."""

from __future__ import annotations

from flwr.app import Message, MetricRecord, RecordDict

from simulation.flower_runtime import begin_run, error_reply
from simulation.reduction import clients_in


def test_clients_in_a_reply() -> None:
    begin_run()
    single = Message(RecordDict({"m": MetricRecord({"loss": 1.0})}), 2, "train")
    merged = Message(RecordDict({"m": MetricRecord({"loss": 1.0, "num-clients": 3})}), 2, "train")
    counted = [clients_in(reply) for reply in (single, merged, error_reply(single, 1, "because"))]
    assert counted == [1, 3, 1]
