"""What is mended of Flower's programs, without any process."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.date import now
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from fedmoe.deployment import flower_part
from fedmoe.deployment.flower_part import (
    BEGIN_SECONDS,
    TASK_SECONDS,
    give_time,
    look_sooner,
    send_late_replies,
    wait_for_news,
)


def test_a_node_sends_a_reply_that_is_ready_though_no_message_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply of a killed run was sent in its turn; then nothing more is received, and it must go all the same."""
    node = importlib.import_module("flwr.supernode.start_client_internal")
    received: list[int | None] = [None, None, 7]
    monkeypatch.setattr(node, "_pull_and_store_message", lambda **_: received.pop(0))
    send_late_replies()
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_run_id", 5)
    monkeypatch.setattr(TaskIdentity, "_task_id", 6)
    state: Any = InMemoryNodeState(object_store=cast(Any, None))
    assert node._pull_and_store_message(state=state) is None
    asked = Message(RecordDict({"config": ConfigRecord({"a": 1})}), 1, "query")
    asked.metadata.__dict__["_message_id"] = asked.object_id
    reply = Message(Error(1, "any"), reply_to=asked)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    state.store_message(reply)
    assert node._pull_and_store_message(state=state) is not None
    assert list(state.get_messages(is_reply=True)) == [reply]  # what Flower's node does next
    assert node._pull_and_store_message(state=state) == 7


def test_a_node_looks_soon_after_a_message_and_then_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    node = importlib.import_module("flwr.supernode.start_client_internal")
    received: list[int | None] = [7, None, None, None, None, None, 8, None]
    slept: list[float] = []
    monkeypatch.setattr(node, "_pull_and_store_message", lambda **_: received.pop(0))
    monkeypatch.setattr(node, "time", node.time)
    monkeypatch.setattr("fedmoe.deployment.flower_part.time.sleep", slept.append)
    told: list[int] = []
    look_sooner(lambda: told.append(len(received)))
    while received:
        if node._pull_and_store_message() is None:
            node.time.sleep(3)  # as Flower's node does
    assert slept == [0.25, 0.5, 1.0, 2.0, 3.0, 0.25]
    node.time.sleep(0.5)
    assert slept[-1] == pytest.approx(0.1)
    assert told == [7, 1]  # its superexec, of each message


def test_a_superexec_asks_as_soon_as_its_node_has_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    superexec = importlib.import_module("flwr.supercore.superexec.run_superexec")
    monkeypatch.setattr(superexec, "time", superexec.time)
    news, slept = tmp_path / "message.came", []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            news.touch()

    monkeypatch.setattr(flower_part.time, "sleep", sleep)
    wait_for_news(news)
    superexec.time.sleep(60.0)  # would sleep a thousand times
    assert len(slept) == 3
    monkeypatch.setattr(flower_part.time, "monotonic", iter([0.0, 0.5, 1.0]).__next__)
    superexec.time.sleep(1.0)  # the news is old
    assert len(slept) == 4


def test_the_process_of_a_task_has_minutes_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it takes longer than Flower's 30 s, and a second process would only make it worse."""
    for name in ("supercore.corestate.in_memory_corestate", "supercore.corestate.sql_corestate"):
        store = importlib.import_module(f"flwr.{name}")
        for constant in ("HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_PATIENCE"):
            monkeypatch.setattr(store, constant, getattr(store, constant))
    links = importlib.import_module("flwr.server.superlink.linkstate.sql_linkstate")
    monkeypatch.setattr(links, "HEARTBEAT_PATIENCE", links.HEARTBEAT_PATIENCE)
    give_time()
    state: Any = InMemoryNodeState(object_store=cast(Any, None))
    task = state.create_task("flwr-clientapp", 5)
    assert state.claim_task(task)
    for seconds in (BEGIN_SECONDS, TASK_SECONDS):
        left = (state.task_token_store[task].active_until - now()).total_seconds()
        assert seconds - 20 < left <= seconds
        assert state.claim_task(task) is None  # no second process
        state.activate_task(task)
