"""Rounds whose replies are merged where the clients live: the same model, failures and bytes as of single replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedmoe.errors import FedMoEError
from fedmoe.wire import packed_bytes, to_record, unpack
from fedmoe_server.rounds.exchange import reduced_exchange
from fedmoe_server.rounds.record import LoopState


def two_hosts(grid: Any) -> Any:
    """Give a fake grid two hosts that merge."""
    grid.merged = 0

    def send_and_reduce(messages: Iterable[Message], reducer: Callable[[], Any]) -> list[Message]:
        grid.merged += 1
        reducers = reducer(), reducer()
        for reply in sorted(grid.send_and_receive(messages), key=lambda reply: reply.metadata.src_node_id):
            reducers[reply.metadata.src_node_id % 2].add(reply)
        return [*reducers[0].replies(), *reducers[1].replies()]

    grid.send_and_reduce, grid.to_record = send_and_reduce, to_record
    return grid


def run(fakes: Any, grid: Any, folder: Path, in_hosts: bool = True, **federation: Any) -> tuple[Any, Any, list[Any]]:
    # Norm clipping compares single updates, so it is off, here as wherever hosts merge.
    settings = fakes.make_settings(guards={"norm_multiple": 0}, **federation)
    settings = settings.model_copy(
        update={"simulation": settings.simulation.model_copy(update={"aggregate_in_hosts": in_hosts})}
    )
    state = LoopState(fakes.model_arrays())
    result = fakes.make_loop(grid, folder, settings).run(state)
    return result, state.chosen()[0], [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedprox"])
def test_the_outcome_is_that_of_single_replies(fakes: Any, tmp_path: Path, strategy: str) -> None:
    def fail(client: int, stage: str, round_: int) -> str | None:
        return "out of luck" if client % 5 == round_ % 5 and stage == "train" else None

    outcomes = []
    for name, grid in (("single", fakes.FakeGrid()), ("merged", two_hosts(fakes.FakeGrid()))):
        grid.fail = fail
        needed = {"proximal_mu": 0.1} if strategy == "fedprox" else {}
        outcomes.append(run(fakes, grid, tmp_path / name, strategy=strategy, strategy_parameters=needed))
    (single, arrays, plain), (merged, others, records) = outcomes
    assert grid.merged == 6
    for name, array in arrays.items():
        np.testing.assert_allclose(others[name].numpy(), array.numpy(), rtol=1e-5, atol=1e-6)
    assert any(record["failed"] for record in records)
    for before, after in zip(plain, records, strict=True):
        exact = ("clients", "failed", "bytes_down", "bytes_up", "shared")
        assert [after[key] for key in exact] == [before[key] for key in exact]
        assert after["train"] == pytest.approx(before["train"], rel=1e-5)
    assert (merged.bytes_up, merged.failed_replies) == (single.bytes_up, single.failed_replies)


def test_a_refused_reply_is_named(fakes: Any, tmp_path: Path) -> None:
    failures = []
    for name, grid in (("single", fakes.FakeGrid()), ("merged", two_hosts(fakes.FakeGrid()))):
        answer = grid._answer

        def spoilt(message: Message, answer: Callable[[Message], Message] = answer) -> Message:
            reply = answer(message)
            if message.metadata.message_type == "train" and message.metadata.dst_node_id % 5 == 0:
                arrays = unpack(packed_bytes(reply.content["arrays"]))
                reply.content["arrays"] = to_record(arrays | {"body": np.full(3, np.nan, np.float32)})
            return reply

        grid._answer = spoilt
        *_, records = run(fakes, grid, tmp_path / name)
        failures.append([record["failed"] for record in records])
    assert failures[0] == failures[1]
    reasons = [failure["reason"] for failure in sum(failures[1], []) if failure["kind"] == "refused"]
    assert any(reason.startswith("parameter 'body'") for reason in reasons)


def test_where_every_reply_is_needed_none_is_merged(fakes: Any, tmp_path: Path) -> None:
    grid = two_hosts(fakes.FakeGrid())
    run(fakes, grid, tmp_path / "off", in_hosts=False)
    run(fakes, grid, tmp_path / "median", strategy="fedmedian", strategy_parameters={})
    assert grid.merged == 0


def test_a_client_that_gets_lost_is_an_error(fakes: Any) -> None:
    grid = two_hosts(fakes.FakeGrid())
    config = ConfigRecord({"server-round": 1, "shared": ["gate"]})
    content = RecordDict({"arrays": fakes.model_arrays(), "config": config})
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    grid.silent = {3}
    with pytest.raises(FedMoEError, match="train: 9 replies and 0 failures of 10 clients"):
        reduced_exchange(grid, messages, "train", lambda: {}, Counting)


class Counting:
    """A reducer that takes everything."""

    def __init__(self) -> None:
        self.replies_: list[Message] = []

    def add(self, reply: Message, num_bytes: int) -> None:
        self.replies_.append(reply)

    def replies(self) -> list[Message]:
        return self.replies_
