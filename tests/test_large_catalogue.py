"""100,000 items, client app and strategy together: rows on the wire give the numbers of whole tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from data.registry import load_dataset
from fedmoe.loading import load_settings, to_run_config
from fedmoe.settings import Settings
from fedmoe_client.app import app
from fedmoe_client.learning.client import ROWS, TABLE
from fedmoe_server.rounds.exchange import packed, unpacked
from model.build import initial_arrays, parameter_groups
from strategies import AggregationSchedule, PartialAggregation, build_strategy, counts_of

CLIENTS = 3
WORDS = (
    f"dataset=synthetic data.synthetic.users={CLIENTS} data.synthetic.items=100000 data.synthetic.feature_dim=4 dim=8 "
    "attention_dim=8 blocks=1 max_seq_len=10 memory_size=10 memory_refresh=5 num_negatives=20"
).split()


class Nodes(Grid):
    """The client app, called in this process."""

    def __init__(self, settings: Settings) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.run_config = to_run_config(settings)
        self.replies: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return [100 + client for client in range(CLIENTS)]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        self.replies = [self._answer(message) for message in messages]
        return sorted(self.replies, key=lambda reply: reply.metadata.src_node_id)

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        config = {"partition-id": node - 100, "num-partitions": CLIENTS}
        (request,) = packed([message])
        return unpacked(app(request, Context(1, node, config, RecordDict(), dict(self.run_config))))

    def set_run(self, run: Any) -> None: ...

    def create_message(self, *_: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Any) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> list[Message]:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        return None


def one_round(strategy: str, *words: str) -> tuple[dict[str, np.ndarray], list[Message], int]:
    """Return the aggregated arrays, the replies and the bytes of the model."""
    settings, _ = load_settings([*WORDS, *words])
    dataset = load_dataset(settings)
    groups = parameter_groups(settings, dataset)
    start = ArrayRecord({name: Array(array) for name, array in initial_arrays(settings, dataset).items()})
    schedule = AggregationSchedule(groups, 0, list(groups), list(groups))
    partial = PartialAggregation(build_strategy(strategy, {}), schedule)
    grid = Nodes(settings)
    replies = grid.send_and_receive(partial.configure_train(1, start, ConfigRecord({"server-round": 1}), grid))
    arrays, _ = partial.aggregate_train(1, replies)
    assert arrays is not None and partial.refusals == []
    return {name: array.numpy() for name, array in arrays.items()}, grid.replies, start.count_bytes()


@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian"])
def test_rows_are_a_tenth_at_most_and_give_the_same_model(strategy: str) -> None:
    sparse, replies, model_bytes = one_round(strategy)
    dense, tables, _ = one_round(strategy, "item_updates=dense")
    assert sparse.keys() == dense.keys()
    for name, array in dense.items():
        np.testing.assert_allclose(sparse[name], array, rtol=0, atol=1e-6, err_msg=name)
    assert (sparse[TABLE] != dense[TABLE]).mean() < 1e-3
    for reply, whole in zip(replies, tables, strict=True):
        assert ROWS in reply.content["arrays"] and ROWS not in whole.content["arrays"]
        assert counts_of(reply)["num-bytes"] < model_bytes / 10 < counts_of(whole)["num-bytes"]
