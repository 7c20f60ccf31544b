"""What a client of one's own keeps and answers on a device: in the state folder, and through the resident process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from deployed_client import WORDS, Deployment
from flwr.app import Array, ArrayRecord, RecordDict

from fedmoe_client.device.resident_call import perform_there, stop
from fedmoe_client.device.task import perform
from fedmoe_client.learning.own_client import LocalRound, OwnClient
from fedmoe_client.store.private import NamedArrays


class Counting(OwnClient):
    """Counts its rounds, adds what the server sends, and answers the sum."""

    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        this.kept["sum"] = this.kept.get("sum", np.zeros(1)) + this.extra["more"]["value"].numpy()
        this.reply["sums"] = ArrayRecord({"sum": Array(this.kept["sum"])})


def extra(value: float) -> RecordDict:
    return RecordDict({"more": ArrayRecord({"value": Array(np.array([value]))})})


def test_a_round_that_comes_twice_counts_once_and_the_resident_process_goes_on(tmp_path: Path) -> None:
    device = Deployment(tmp_path / "client", words=[*WORDS, f"client={__name__}:Counting"])
    sums = []
    for number, value in ((1, 1.0), (2, 10.0), (2, 20.0)):
        task = device.task("train", number)
        task = type(task)(**{**vars(task), "extra": extra(value)})
        sums.append(float(perform(task).records["sums"]["sum"].numpy()[0]))
    assert sums == [1.0, 11.0, 21.0]
    task, node = device.task("train", 3), device.node(warm=True)
    try:
        there = perform_there("train", task.arrays, task.config, node, device.run_config, "run", extra(100.0))
    finally:
        stop(device.state_dir)
    assert there[0] is not None and float(there[2]["sums"]["sum"].numpy()[0]) == 121.0
