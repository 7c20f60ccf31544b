"""A tenth of the clients sends rubbish: the default guards keep the model as good as without them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

import sim
from strategies import PartialAggregation

JOB = (
    "quick dim=16 attention_dim=16 num_rounds=20 strategy_parameters.eta=0.015 evaluate_every=0 warmup_rounds=20 "
    "hosts=1 engine=vectorized aggregate_in_hosts=false local_epochs=1"
).split()
SPLITS = ("validation", "test")
TABLE = "items.ids.weight"
Arrays = dict[str, np.ndarray]


def filled(value: float) -> Callable[[Arrays, dict[str, Any]], None]:
    def change(arrays: Arrays, metrics: dict[str, Any]) -> None:
        arrays[TABLE] = np.full_like(arrays[TABLE], value)

    return change


def misshapen(arrays: Arrays, metrics: dict[str, Any]) -> None:
    arrays[TABLE] = arrays[TABLE].T


def huge(arrays: Arrays, metrics: dict[str, Any]) -> None:
    arrays.update({name: np.asarray(1000 * array, array.dtype) for name, array in arrays.items()})


def boastful(arrays: Arrays, metrics: dict[str, Any]) -> None:
    metrics["num-examples"] = 10**9


CHANGES = (filled(np.nan), filled(np.inf), misshapen, huge, boastful)


def spoilt(reply: Message, change: Callable[[Arrays, dict[str, Any]], None]) -> Message:
    """Return a reply, as a strategy sees it, with its arrays and metrics changed."""
    arrays = {name: array.numpy() for name, array in reply.content["arrays"].items()}
    metrics = dict(next(iter(reply.content.metric_records.values())).items())
    ids = {name: arrays.pop(name) for name in list(arrays) if name.endswith("/rows")}  # which rows they are stays true
    change(arrays, metrics)
    record = ArrayRecord({name: Array(array) for name, array in (arrays | ids).items()})
    reply.content = RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})
    return reply


def final(run_dir: Path) -> Mapping[str, Any]:
    result: Mapping[str, Any] = json.loads((run_dir / "result.json").read_text())
    return result


def test_the_guards_hold(hosts_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sim.main([*JOB, f"save_dir={tmp_path / 'clean'}"]) == 0
    aggregate = PartialAggregation.aggregate_train
    bad: dict[int, int] = {}  # node -> which change

    def with_bad_clients(self: PartialAggregation, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        for reply in replies:
            node = reply.metadata.src_node_id
            if node % 10 == 0:
                bad.setdefault(node, len(bad) % len(CHANGES))
                spoilt(reply, CHANGES[bad[node]])
        return aggregate(self, server_round, replies)

    monkeypatch.setattr(PartialAggregation, "aggregate_train", with_bad_clients)
    assert sim.main([*JOB, f"save_dir={tmp_path / 'bad'}"]) == 0
    clean, attacked = (next((tmp_path / name).iterdir()) for name in ("clean", "bad"))
    assert len(bad) >= 15
    assert final(attacked)["failed_rounds"] == []
    # Of 200 users one is half a point: one or two points cannot be told from chance here, a broken model can.
    hits = [mean(final(run_dir)[split]["global"]["hr@10"] for split in SPLITS) for run_dir in (clean, attacked)]
    assert hits[0] > 0.4  # popularity has 0.23
    assert hits[1] >= hits[0] - 0.03
    report = (attacked / "report.md").read_text()
    for line in (
        "refused: parameter ... has a value that is not finite",
        "refused: parameter ... has shape ..., expected ...",
        "refused: metric ..., its weight, is ..., above the limit of ...",
        "scaled down: update longer than the bound",
    ):
        assert f"| {line} |" in report
