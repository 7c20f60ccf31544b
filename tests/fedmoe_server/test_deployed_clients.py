"""Real clients: how many are waited for, who is believed, whose replies count, and what a follower sees."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from data.registry import load_dataset
from fedmoe.errors import FailureKind, FedMoEError
from fedmoe.loading import load_settings, settings_from
from fedmoe.packages import app_version
from fedmoe.settings import DeploymentSettings
from fedmoe_server.deploy import submission
from fedmoe_server.deploy.deployed import AdmittedClient, Deployed, identity
from fedmoe_server.rounds.clients import ClientDirectory
from fedmoe_server.rounds.exchange import SENDING, exchange


class Nodes:
    """A grid of nodes that answer the query: a client id, or an error."""

    def __init__(self, fakes: Any, answers: dict[int, int | Error]) -> None:
        self.answers = answers
        self.asked: list[Message] = []
        fakes.FakeGrid()  # makes this process one that may make messages

    def get_node_ids(self) -> list[int]:
        return list(self.answers)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        self.asked += messages
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        answer = self.answers[message.metadata.dst_node_id]
        if isinstance(answer, Error):
            return Message(answer, reply_to=message)
        return Message(RecordDict({"config": ConfigRecord({"client-id": answer})}), reply_to=message)


def test_a_round_waits_for_enough_clients(fakes: Any) -> None:
    grid = Nodes(fakes, {50: 0})
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        grid.answers[60] = 1  # another one connects

    directory = ClientDirectory(wait_seconds=5.0, poll_seconds=0.0, note=note, minimum=2)
    directory.await_clients(grid)  # type: ignore[arg-type]
    assert notes == ["1 of 2 clients are connected: waiting for more"]
    with pytest.raises(
        FedMoEError, match=r"only 1 clients are connected after 0 s, deployment\.min_clients asks for 2"
    ):
        ClientDirectory(wait_seconds=0.0, minimum=2).await_clients(Nodes(fakes, {50: 0}))  # type: ignore[arg-type]


def admitted(client: int, node: int) -> dict[str, Any]:
    return asdict(AdmittedClient(client, node, f"key of {client}"))


def test_a_node_is_who_it_was_admitted_as(fakes: Any, tmp_path: Path) -> None:
    clients = tmp_path / "clients.json"
    clients.write_text(json.dumps([admitted(0, 50), admitted(1, 60)]))
    directory = Deployed(clients).directory(DeploymentSettings(wait_seconds=0.1))
    notes: list[str] = []
    directory.note = notes.append
    grid = Nodes(fakes, {50: 0, 60: 0, 70: 2})
    assert directory.client_ids(grid) == {50: 0}  # type: ignore[arg-type]
    assert notes == [
        "client 1 is left out: claims to be client 0, but was admitted as client 1",
        "node 70 is left out: claims to be client 2, but was admitted as client None",
    ]
    clients.write_text(json.dumps([admitted(0, 50), admitted(2, 70)]))
    directory.retry_seconds = 0.0
    directory._refused = {node: (0.0, reason) for node, (_, reason) in directory._refused.items()}
    assert directory.client_ids(grid) == {50: 0, 70: 2}  # type: ignore[arg-type]


def test_a_refusal_is_told_once_and_asked_again_later(fakes: Any) -> None:
    reason = "the model version is not the server's: 1-a at the server, 1-b at the client"
    grid = Nodes(fakes, {50: 0, 60: Error(FailureKind.RAISED, reason)})
    notes: list[str] = []
    directory = ClientDirectory(note=notes.append, retry_seconds=60.0)
    directory.announce = {"model": "1-a", "round": 3}
    for _ in range(3):
        assert directory.client_ids(grid) == {50: 0}  # type: ignore[arg-type]
    assert len(grid.asked) == 2
    assert dict(grid.asked[0].content.config_records["config"]) == {"model": "1-a", "round": 3}
    told = f"node 60 is left out: {reason}"
    assert notes == [told]
    directory.retry_seconds = 0.0
    directory._refused[60] = (0.0, directory._refused[60][1])
    directory.client_ids(grid)  # type: ignore[arg-type]
    assert len(grid.asked) == 3
    assert notes == [told]


def test_a_server_tells_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(["quick", "data.synthetic.users=5", "data.synthetic.items=50"])[0]
    told = identity(settings, load_dataset(settings), 3)
    assert told["fedmoe"] == app_version() and told["round"] == 3 and {"catalogue", "model"} <= told.keys()


def requests(fakes: Any, *nodes: int) -> list[Message]:
    fakes.FakeGrid()  # makes this process one that may make messages
    made = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]
    for message in made:
        message.metadata.__dict__["_message_id"] = f"to-{message.metadata.dst_node_id}"
    return made


class Answers:
    """A grid that gives prepared replies."""

    def __init__(self, replies: list[Message]) -> None:
        self.replies = replies

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        return self.replies


def test_late_and_repeated_replies_are_dropped(fakes: Any) -> None:
    earlier, first = requests(fakes, 5), requests(fakes, 5, 6)
    earlier[0].metadata.__dict__["_message_id"] = "of-the-round-before"
    late = Message(RecordDict({"x": ConfigRecord({"late": 1})}), reply_to=earlier[0])
    good = Message(RecordDict({"x": ConfigRecord({"late": 0})}), reply_to=first[0])
    again = Message(RecordDict({"x": ConfigRecord({"late": 2})}), reply_to=first[0])
    outcome = exchange(Answers([late, good, again]), first, "train", lambda: {5: 0, 6: 1}, 30.0)  # type: ignore[arg-type]
    assert outcome.replies == [good]
    assert outcome.dropped == (5, 5)
    assert [(failure.client, failure.reason) for failure in outcome.failures] == [(1, "no reply in time")]
    assert {message.metadata.ttl for message in first} == {
        30.0 + SENDING
    }  # a node that comes later does not begin any more


def test_an_answer_by_the_server_for_a_node_names_the_client(fakes: Any) -> None:
    (message,) = requests(fakes, 5)
    answer = Message(Error(5, "Error: Node Unavailable"), reply_to=message)
    answer.metadata.__dict__["_src_node_id"] = 1  # of the server itself
    outcome = exchange(Answers([answer]), [message], "train", lambda: {5: 7}, None)  # type: ignore[arg-type]
    assert [(failure.client, failure.reason) for failure in outcome.failures] == [(7, "Error: Node Unavailable")]


def test_data_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clicks.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    given = settings_from({"data": {"dataset": "file", "data_file": "clicks.csv", "visual_file": "missing.npy"}})
    sent = submission._with_absolute_paths(given)
    assert sent.data.data_file == tmp_path / "clicks.csv"
    assert (sent.modalities["visual"].file, sent.modalities["text"].file) == ("missing.npy", "titles")
    assert sent.model_copy(update={"data": given.data}) == given
