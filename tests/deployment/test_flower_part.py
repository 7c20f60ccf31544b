"""What is mended of Flower's programs, without any process."""

from __future__ import annotations

import importlib
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from fedmoe.deployment.flower_part import send_late_replies


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
