"""What leaves a client under differential privacy: a clipped update, and no metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from data.registry import load_dataset
from fedmoe.loading import from_run_config
from fedmoe.modalities import GROUPS
from fedmoe.wire import NamedArrays, to_record
from fedmoe_client.app import app
from fedmoe_client.learning import private_reply as module
from fedmoe_client.learning.private_reply import noise_stream, private_reply
from model.build import initial_arrays
from strategies.privacy import rule

METRICS = {"num-examples": 17, "loss": 2.5}


def named(arrays: Mapping[str, Any]) -> NamedArrays:
    kinds = {name: np.int64 if name.endswith("/rows") else np.float32 for name in arrays}
    return {name: np.asarray(value, kinds[name]) for name, value in arrays.items()}


def stream() -> np.random.Generator:
    return np.random.default_rng(3)


SENT = named({"table": np.ones((4, 2)), "w": [1, 1], "gate": 5.0})


def test_without_privacy_a_reply_stays_as_it_is() -> None:
    trained = named({"w": [100, 1]})
    arrays, metrics = private_reply(SENT, trained, METRICS, {"shared": ["backbone"]}, stream)
    assert arrays is trained
    assert metrics == METRICS


def test_metrics_stay_at_home() -> None:
    _, metrics = private_reply(SENT, named({"w": [1, 1]}), METRICS, {"metrics": "none"}, stream)
    assert metrics == {"num-examples": 1}


def test_the_whole_update_is_clipped_together() -> None:
    trained = named({"w": [4, 1], "table": np.ones((4, 2)) + [[0, 4], [0, 0], [0, 0], [0, 0]]})
    arrays, metrics = private_reply(SENT, trained, METRICS, {"clipping_norm": 1.0}, stream)  # norm 5
    assert arrays["w"] == pytest.approx([1.6, 1.0])
    assert arrays["table"][0] == pytest.approx([1.0, 1.8])
    assert arrays["table"].dtype == np.float32
    assert metrics == {**METRICS, "norm_bit": 1}


def test_rows_of_a_table_are_clipped_alike() -> None:
    trained = named({"w": [4, 1], "table": [[1, 5]], "table/rows": [2]})
    arrays, _ = private_reply(SENT, trained, METRICS, {"clipping_norm": 1.0}, stream)
    assert arrays["table"] == pytest.approx(np.array([[1.0, 1.8]]))
    assert arrays["table/rows"].tolist() == [2]
    assert list(arrays) == list(trained)


def test_a_short_update_is_sent_as_it_is() -> None:
    trained = named({"w": [1.5, 1]})
    arrays, metrics = private_reply(SENT, trained, METRICS, {"clipping_norm": 1.0, "metrics": "none"}, stream)
    assert arrays is trained
    assert metrics == {"num-examples": 1, "norm_bit": 0}


def test_both_sides_use_the_same_names() -> None:
    for name in ("NORM_KEY", "NOISE_KEY", "BIT_KEY", "METRICS_KEY"):
        assert getattr(module, name) == getattr(rule, name)


def test_noise_covers_the_whole_table_and_tells_no_rows() -> None:
    sent = named({"table": np.zeros((500, 8)), "w": [1, 1]})
    trained = named({"w": [1, 2], "table": np.full((2, 8), 7.0), "table/rows": [3, 9]})
    arrays, _ = private_reply(sent, trained, METRICS, {"noise_deviation": 0.5}, stream)
    assert list(arrays) == ["w", "table"]
    table = arrays["table"]
    assert table.shape == (500, 8)
    assert table[[3, 9]].mean() == pytest.approx(7.0, abs=0.5)
    assert np.delete(table, [3, 9], axis=0).std() == pytest.approx(0.5, rel=0.05)


def test_only_a_simulated_client_draws_noise_that_can_be_repeated() -> None:
    draws = [noise_stream(simulated, 42, 1, 3).random() for simulated in (True, True, False, False)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert noise_stream(True, 42, 2, 3).random() != draws[0]


def test_noise_of_a_bare_flower_run_does_not_come_from_the_seed() -> None:
    """``flwr run .`` says nothing of a simulation: its clients are taken for real ones."""
    words = (
        "dataset=synthetic users=8 items=40 dim=4 attention_dim=4 blocks=0 max_seq_len=6 memory_size=6 memory_refresh=3"
    )
    bare: dict[str, Any] = {"config": "", "overrides": words, "settings": "", "simulated": False}
    settings = from_run_config(bare)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    arrays = initial_arrays(settings, load_dataset(settings))
    asked = ConfigRecord({"shared": list(GROUPS), "server-round": 1, "noise_deviation": 1.0})

    def reply(run_config: dict[str, Any]) -> bytes:
        content = RecordDict({"arrays": to_record(arrays), "config": asked})
        context = Context(1, 1, {"partition-id": 2, "num-partitions": 8}, RecordDict(), run_config)
        answer = app(Message(content, 1, "train"), context)
        return b"".join(array.data for array in answer.content.array_records["arrays"].values())

    assert reply(bare) != reply(bare)
    unsaid = {key: value for key, value in bare.items() if key != "simulated"}
    assert reply(unsaid) != reply(unsaid)
    assert reply(bare | {"simulated": True}) == reply(bare | {"simulated": True})
