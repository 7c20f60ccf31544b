"""What a reply stands for, and how many bytes its clients would have sent."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from simulation.flower_runtime import begin_run, error_reply
from simulation.reduction import clients_in, take_bytes_up


def reply(**metrics: float) -> Message:
    begin_run()
    content = RecordDict({"a": ArrayRecord({"w": Array(np.zeros(5))}), "m": MetricRecord(dict(metrics))})
    return Message(content, 2, "train")


def test_a_reply_of_one_client() -> None:
    single = reply(loss=1.0)
    size = sum(record.count_bytes() for record in single.content.values())
    assert (clients_in(single), take_bytes_up(single)) == (1, size)
    failed = error_reply(single, 1, "because")
    assert (clients_in(failed), take_bytes_up(failed)) == (1, 0)


def test_a_merged_reply() -> None:
    silent = reply(**{"num-clients": 3})
    size = sum(record.count_bytes() for record in silent.content.values())
    assert (clients_in(silent), take_bytes_up(silent)) == (3, 3 * size)
    told = reply(**{"num-clients": 3, "bytes-up": 77})
    assert (clients_in(told), take_bytes_up(told)) == (3, 77)
    assert dict(told.content["m"]) == {"num-clients": 3}
