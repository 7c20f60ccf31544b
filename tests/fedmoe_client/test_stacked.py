"""Clients in stacks: the same replies and the same private parameters as one by one, and their mean."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings, to_run_config
from fedmoe.modalities import GROUPS
from fedmoe.wire import packed_bytes, to_record, unpack
from fedmoe_client.app import app
from fedmoe_client.learning.client import ROWS, TABLE, workbench
from fedmoe_client.learning.training import LocalSteps
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.stacked import app as stack_app
from fedmoe_client.stacked.training import Member, stacks_of
from fedmoe_server.rounds.exchange import PackedMean
from model.build import initial_arrays
from strategies.layers.reply_mean import ReplyMean

WORDS = (
    "dataset=synthetic users=14 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=6 memory_size=6 "
    "memory_refresh=3 num_negatives=5 learning_rate=0.5 dropout=0"
).split()
SHARED = ["embedding", "backbone", "experts.*"]
CASES = [
    "clip_norm=0.2",
    "item_representation=id local_epochs=2 batch_size=2",
    "fusion=competitive score=cosine loss=bpr",
    "fusion=score loss=gbce",
    "experts=attention",
    "experts=attention item_representation=id memory_decay=0",
    "mixture=false weight_decay=0.1 momentum=0.5 local_epochs=2",
    "visual_file=noise text_file=null norm_sequence=false item_updates=dense",
]


def messages_of(
    run_config: dict[str, Any], shared: list[str], server_round: int, states: dict[int, RecordDict], **asked: Any
) -> tuple[list[Message], list[Context]]:
    """Return a train message and a context for each of the clients, all with the same arrays; asked: more config."""
    bench = workbench(run_config)
    arrays = to_record(initial_arrays(bench.settings, bench.dataset))
    config = ConfigRecord({"server-round": server_round, "shared": shared, **asked})
    messages, contexts = [], []
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    for client, state in states.items():
        messages.append(Message(RecordDict({"arrays": arrays, "config": config}), client + 1, "train"))
        node = {"partition-id": client, "num-partitions": 14}
        contexts.append(Context(1, client + 1, node, state, {**run_config, "simulated": True}))
    return messages, contexts


def arrays_of(content: RecordDict) -> dict[str, np.ndarray]:
    return unpack(packed_bytes(content.array_records["arrays"]))


def with_whole_table(content: RecordDict, bench: Workbench) -> dict[str, np.ndarray]:
    """Return a reply's arrays, rows of the item table put into the server's."""
    arrays = arrays_of(content)
    if (ids := arrays.pop(ROWS, None)) is not None:
        table = initial_arrays(bench.settings, bench.dataset)[TABLE].copy()
        table[ids] = arrays[TABLE]
        arrays[TABLE] = table
    return arrays


def assert_same(found: ArrayRecord, expected: ArrayRecord) -> None:
    values, wanted = unpack(packed_bytes(found)), unpack(packed_bytes(expected))
    assert list(values) == list(wanted)
    for name, value in values.items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.parametrize("words", CASES)
def test_a_stack_is_its_clients_one_by_one(words: str) -> None:
    run_config = to_run_config(load_settings([*WORDS, *words.split()])[0])
    alone = {client: RecordDict() for client in range(14)}
    stacked = {client: RecordDict() for client in range(14)}
    for server_round in (1, 2):  # in the second one, clients have private parameters of their own
        messages, contexts = messages_of(run_config, SHARED, server_round, alone)
        expected = [app(message, context) for message, context in zip(messages, contexts, strict=True)]
        found = stack_app.train(*messages_of(run_config, SHARED, server_round, stacked), reduce=False)
        assert len(found) == len(expected)
        for reply, like in zip(found, expected, strict=True):
            assert reply.metadata.dst_node_id == like.metadata.dst_node_id
            assert_same(reply.content.array_records["arrays"], like.content.array_records["arrays"])
            assert dict(reply.content["metrics"]) == pytest.approx(dict(like.content["metrics"]), abs=1e-4)
    for client, state in alone.items():
        if "private" in state:
            assert_same(stacked[client]["private"], state["private"])
        assert len(stacked[client]) == len(state)


def test_adam_is_each_clients_own() -> None:
    # But for a few entries: where a true gradient is zero, Adam makes a whole step of its rounding error.
    run_config = to_run_config(load_settings([*WORDS, "optimizer=adam", "learning_rate=0.01"])[0])
    messages, contexts = messages_of(run_config, SHARED, 1, {client: RecordDict() for client in range(4)})
    _, others = messages_of(run_config, SHARED, 1, {client: RecordDict() for client in range(4)})
    found = stack_app.train(messages, others, reduce=False)
    for reply, message, context in zip(found, messages, contexts, strict=True):
        like = app(message, context).content
        assert reply.content["metrics"]["loss"] == pytest.approx(like["metrics"]["loss"], rel=1e-5)
        rows, expected = (arrays_of(content)["items.ids.weight"] for content in (reply.content, like))
        assert np.mean(np.abs(rows - expected) > 1e-5) < 0.01


@pytest.mark.parametrize("words", ["stack_size=1", "stack_size=100", "item_updates=dense"])
def test_the_mean_of_a_stack_is_that_of_its_replies(words: str) -> None:
    run_config = to_run_config(load_settings([*WORDS, *words.split()])[0])
    bench = workbench(run_config)
    server = {name: Array(each) for name, each in initial_arrays(bench.settings, bench.dataset).items()}
    replies = []
    for reduce in (False, True):
        messages, contexts = messages_of(run_config, list(GROUPS), 1, {client: RecordDict() for client in range(14)})
        mean = PackedMean(partial(ReplyMean, server))
        for reply in stack_app.train(messages, contexts, reduce):
            mean.add(reply)
        replies.append(mean.replies())
    [one_by_one], [at_once] = replies
    found, expected = (with_whole_table(reply.content, bench) for reply in (at_once, one_by_one))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, rtol=0, err_msg=name)
    wanted, numbers = (dict(reply.content["metrics"]) for reply in (one_by_one, at_once))
    assert numbers["num-bytes"] == wanted["num-bytes"]
    assert numbers == pytest.approx(wanted, abs=1e-4)
    assert numbers["num-clients"] == 14


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("dropout=0", {"clipping_norm": 0.01}),
        ("dropout=0", {"metrics": "none", "clipping_norm": 0.01, "noise_deviation": 0.1}),
        ("max_windows=1", {"proximal-mu": 5.0}),
    ],
)
def test_a_stack_does_what_the_server_asks_for(words: str, asked: dict[str, Any]) -> None:
    run_config = to_run_config(load_settings([*WORDS, *words.split()])[0])
    each = [messages_of(run_config, SHARED, 1, {c: RecordDict() for c in range(4)}, **asked) for _ in range(2)]
    expected = [app(message, context) for message, context in zip(*each[0], strict=True)]
    for reply, like in zip(stack_app.train(*each[1], reduce=False), expected, strict=True):
        assert_same(reply.content.array_records["arrays"], like.content.array_records["arrays"])
        assert dict(reply.content["metrics"]) == pytest.approx(dict(like.content["metrics"]), abs=1e-4)
    if "clipping_norm" in asked:
        assert "norm_bit" in reply.content["metrics"]
        with pytest.raises(FedMoEError, match="cannot be merged"):
            stack_app.train(*each[1], reduce=True)


def test_fedprox_with_several_steps_is_not_stacked() -> None:
    run_config = to_run_config(load_settings([*WORDS, "batch_size=1", "max_windows=0"])[0])
    messages, contexts = messages_of(run_config, SHARED, 1, {c: RecordDict() for c in range(4)}, **{"proximal-mu": 5.0})
    with pytest.raises(FedMoEError, match="more than one local step"):
        stack_app.train(messages, contexts, reduce=False)


@pytest.mark.parametrize("words", ["learning_rate=1000 weight_decay=3e38", "max_examples=24 max_windows=0"])
def test_what_the_server_refuses_costs_its_client_alone(words: str) -> None:
    settings = load_settings([*WORDS, *words.split()])[0]
    run_config = to_run_config(settings)
    bench = workbench(run_config)
    server = {name: Array(each) for name, each in initial_arrays(bench.settings, bench.dataset).items()}
    sent = {name: server[name] for name in bench.names_in(tuple(SHARED))}
    counts = []
    for at_once in (False, True):
        states = {client: RecordDict() for client in range(14)}
        messages, contexts = messages_of(run_config, SHARED, 1, states)
        mean = PackedMean(partial(ReplyMean, sent, max_examples=settings.federation.guards.max_examples))
        alone = [app(message, context) for message, context in zip(messages, contexts, strict=True)]
        for reply in stack_app.train(*messages_of(run_config, SHARED, 1, states), True) if at_once else alone:
            mean.add(reply)
        replies = mean.replies()
        failed = sum(reply.has_error() for reply in replies)
        counts.append(failed)
        assert failed + sum(r.content["metrics"]["num-clients"] for r in replies if r.has_content()) == 14
        for state in states.values():
            for array in stack_app.InContext(state).load().values():
                assert np.isfinite(array).all()
    assert counts[0] == counts[1] > 0, "as many as one by one"


def test_dropout_differs_between_rounds_and_is_the_same_again() -> None:
    run_config = to_run_config(load_settings([*WORDS, "dropout=0.5"])[0])
    results = []
    for server_round in (1, 1, 2):
        messages, contexts = messages_of(run_config, list(GROUPS), server_round, {c: RecordDict() for c in range(5)})
        [mean] = stack_app.train(messages, contexts, reduce=True)
        results.append(arrays_of(mean.content)["items.ids.weight"].tobytes())
    assert results[0] == results[1] != results[2]


def test_a_client_that_fails_costs_itself_alone() -> None:
    run_config = to_run_config(load_settings(WORDS)[0])
    states = {client: RecordDict() for client in range(5)}
    messages, contexts = messages_of(run_config, SHARED, 1, states)
    gate = {"gate.value": np.array(np.nan, np.float32)}
    stack_app.InContext(states[3])._keep(gate)
    replies = stack_app.train(messages, contexts, reduce=True)
    failed = [reply for reply in replies if reply.has_error()]
    assert [reply.error.reason[:40] for reply in failed] == ["FloatingPointError: the loss is nan: low"]
    assert sum(reply.content["metrics"].get("num-clients", 1) for reply in replies if reply.has_content()) == 4
    assert list(stack_app.InContext(states[3]).load()) == ["gate.value"]  # as it was


@pytest.mark.parametrize(
    ("words", "shared", "complaint"),
    [
        ("loss=softmax", SHARED, "training.loss = softmax"),
        ("dropout=0", ["backbone"], "group 'embedding' is private"),
    ],
)
def test_what_cannot_be_stacked_is_said(words: str, shared: list[str], complaint: str) -> None:
    run_config = to_run_config(load_settings([*WORDS, *words.split()])[0])
    messages, contexts = messages_of(run_config, shared, 1, {0: RecordDict(), 1: RecordDict()})
    with pytest.raises(FedMoEError, match=complaint):
        stack_app.train(messages, contexts, reduce=True)


def test_stacks_hold_clients_of_one_kind() -> None:
    def member(client: int, *windows: int) -> Member:
        ids = [(torch.zeros(count, 3), torch.zeros(count, 2)) for count in windows]
        batches: list[Any] = [type("Batch", (), {"context": context, "targets": targets}) for context, targets in ids]
        return Member(client, LocalSteps(batches, 1, 0), {})

    members = [member(0, 2), member(1, 1), member(2, 2), member(3, 2), member(4, 9), member(5, 2, 1)]
    stacks = [[each.place for each in stack] for stack in stacks_of(members, 4, 10)]
    assert stacks == [[1], [0], [2, 3], [5], [4]]
    ones = [member(client, 1) for client in range(5)]
    assert [len(stack) for stack in stacks_of(ones, 4, 10)] == [5]  # not 4 and 1
