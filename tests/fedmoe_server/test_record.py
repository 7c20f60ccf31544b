"""Rounds and results as values, and as lines of the run folder, of this version and of older ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedmoe.errors import FailureKind
from fedmoe_server.rounds.record import (
    Clipped,
    Failure,
    LoopState,
    Result,
    RoundRecord,
    Sender,
    experts_of,
    list_arrays,
    list_failures,
)
from strategies.layers.replies import Valued

ROUND = RoundRecord(
    round=3,
    phase="warmup",
    shared=("embedding", "gate"),
    clients=7,
    train={"loss": 1.5, "gate": None},
    clipped=(Clipped(4, 104, 9.0, 1.0),),
    validation={"ndcg@10": 0.1, "global-ndcg@10": 0.2},
    best=True,
    privacy={"epsilon": 2.0},
    failed=(
        Failure(1, 101, "train", "metric 'loss' is missing", FailureKind.REFUSED),
        Failure(None, 9, "test", "gone"),
    ),
    dropped=(Sender(None, 8),),
    bytes_down=5,
    bytes_up=4,
    seconds=0.5,
)


@pytest.mark.parametrize("record", [ROUND, RoundRecord(1, failure="round 1, train: only 0 of 2 clients replied")])
def test_a_round_comes_back_from_its_line(record: RoundRecord) -> None:
    assert RoundRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_line_has_the_keys_that_it_always_had() -> None:
    keys = (
        "round phase shared clients train clipped validation best privacy failure validation_failure failed dropped "
        "bytes_down bytes_up seconds phases"
    ).split()
    assert list(ROUND.to_json()) == keys
    assert list(RoundRecord(1).to_json()) == [key for key in keys if key != "privacy"]
    assert ROUND.to_json()["failed"][0] == {
        "client": 1,
        "node": 101,
        "stage": "train",
        "reason": "metric 'loss' is missing",
        "kind": "refused",
    }


def test_a_line_of_an_older_version_is_read() -> None:
    old = {
        "round": 2, "phase": "main", "shared": ["gate"], "clients": 3, "train": {}, "validation": None, "best": False,
        "failed": [{"client": 1, "node": 101, "stage": "train", "reason": "OSError: disk gone"}], "bytes_down": 1,
        "bytes_up": 1, "seconds": 1.0, "lent": 4,
    }  # fmt: skip
    record = RoundRecord.from_json(old)
    assert record.failed == (Failure(1, 101, "train", "OSError: disk gone", FailureKind.RAISED),)
    assert (record.clipped, record.dropped, record.failure) == ((), (), None)


def test_results_of_completed_and_failed_runs() -> None:
    done = Result("completed", rounds=4, best_round=2, validation={"global": {"hr@10": 0.5}}, bytes_down=3, bytes_up=2)
    written = json.loads(json.dumps(done.to_json()))
    assert "error" not in written and written["failed_rounds"] == []
    assert Result.from_json(written) == done
    failed = Result("failed", error="round 2: nobody")
    assert failed.to_json() == {"status": "failed", "error": "round 2: nobody", "baselines": None}
    assert Result.from_json(failed.to_json()) == failed


def test_failures_in_words() -> None:
    assert list_failures(ROUND.failed) == (
        "client 1 (train): reply refused: metric 'loss' is missing; node 9 (test): gone"
    )
    assert list_failures(ROUND.failed * 2).endswith("; and 1 more")


def test_experts_are_those_that_the_router_weighs() -> None:
    assert experts_of({"loss": 1.0, "router-sequence": 0.2, "router-audio": 0.8, "router-entropy": 1.0}) == ["audio"]


def test_the_best_model_is_a_copy_since_later_rounds_change_tables_in_place() -> None:
    state = LoopState(list_arrays({"items": np.zeros(2)}))
    table = np.array([1.0, 2.0])
    state.arrays["items"] = Valued(table)
    assert state.judge(0.5, {})
    table += 7
    assert state.chosen()[0]["items"].numpy().tolist() == [1.0, 2.0]
