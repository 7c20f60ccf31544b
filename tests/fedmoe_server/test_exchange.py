"""The edge of the server: the model's arrays are packed once for all who share them, and replies come off the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmoe.errors import FailureKind
from fedmoe.wire import is_packed, packed_bytes, to_record, unpack
from fedmoe_server.rounds.exchange import exchange, packed, unpacked

MODEL = {"body": np.arange(3, dtype=np.float32), "gate": np.array(0.5, np.float32)}
CONTROL = ArrayRecord({"body": Array(np.ones(3))})  # a record of a strategy's own
METRICS = MetricRecord({"num-examples": 2})


@pytest.fixture(autouse=True)
def _server() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def record(arrays: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def reply_with(arrays: ArrayRecord, **more: Any) -> Message:
    return Message(
        RecordDict({"arrays": arrays, "metrics": METRICS, **more}), reply_to=Message(RecordDict(), 7, "train")
    )


def test_what_messages_share_they_share_on_the_wire() -> None:
    first, second = record(MODEL), record(MODEL | {"gate": np.array(1.5, np.float32)})
    one = RecordDict({"arrays": first, "control": CONTROL})
    contents = [
        one,
        one,
        RecordDict({"arrays": first}),
        RecordDict({"arrays": second}),
        RecordDict({"config": ConfigRecord()}),
    ]
    messages = [Message(content, node, "train") for node, content in enumerate(contents, 1)]
    sent = [message.content for message in packed(iter(messages))]
    assert sent[0] is sent[1] and sent[0] is not sent[2]
    assert sent[0]["arrays"] is sent[2]["arrays"] is not sent[3]["arrays"]
    assert sent[0]["control"] is CONTROL
    assert sent[4] is contents[4]
    assert [message.content for message in messages] == contents, "the strategy's own messages stay as they are"
    assert unpack(packed_bytes(sent[3].array_records["arrays"]))["gate"] == np.float32(1.5)


def test_a_reply_comes_off_the_wire_by_name() -> None:
    reply = reply_with(to_record(MODEL), control=CONTROL)
    found = unpacked(reply).content
    assert {name: array.numpy().tolist() for name, array in found.array_records["arrays"].items()} == {
        "body": [0, 1, 2],
        "gate": 0.5,
    }
    assert found["control"] is CONTROL and found["metrics"] is METRICS
    assert is_packed(reply.content.array_records["arrays"])
    plain = reply_with(record(MODEL))
    assert unpacked(plain) is plain, "another client app may answer with arrays of Flower's own"


class Grid:
    """Answers each message with what ``answer`` makes of its model."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.answer = answer

    def send_and_receive(self, messages: list[Message], timeout: float | None) -> list[Message]:
        replies = []
        for message in messages:
            data = self.answer(packed_bytes(message.content.array_records["arrays"]))
            arrays = ArrayRecord({"packed": Array("uint8", (len(data),), "fedmoe.wire", data)})
            replies.append(Message(RecordDict({"arrays": arrays, "metrics": METRICS}), reply_to=message))
        return replies


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda data: data[:-3], "the packed arrays are damaged: array 'gate'"),
        (lambda data: b"nonsense and more", "they do not begin as packed arrays do"),
        (lambda data: data[:6] + b"\x09" + data[7:], "packed in version 9 of the format, here it is 1"),
    ],
)
def test_a_reply_that_cannot_be_read_fails_its_client_alone(answer: Callable[[bytes], bytes], reason: str) -> None:
    messages = [Message(RecordDict({"arrays": record(MODEL)}), 7, "train")]
    good = exchange(Grid(lambda data: data), messages, "train", lambda: {7: 3}, None)  # type: ignore[arg-type]
    bad = exchange(Grid(answer), messages, "train", lambda: {7: 3}, None)  # type: ignore[arg-type]
    assert good.failures == () and good.bytes_up == good.bytes_down + METRICS.count_bytes()
    (failure,) = bad.failures
    assert (failure.client, failure.kind) == (3, FailureKind.REFUSED)
    assert reason in failure.reason
