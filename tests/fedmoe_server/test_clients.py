"""Node ids and client ids."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedmoe.errors import FedMoEError
from fedmoe_server.rounds.clients import ClientDirectory
from fedmoe_server.rounds.exchange import KnownClients


def asking(fakes: Any, answers: dict[int, Any]) -> Any:
    """Return a grid of the nodes of ``answers``; an answer is a client id, an Error, or None for no client-id."""

    class Grid(fakes.FakeGrid):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.answers = answers
            self.asked: list[int] = []

        def get_node_ids(self) -> list[int]:
            return list(self.answers)

        def _answer(self, message: Message) -> Message:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            answer = self.answers[node]
            if isinstance(answer, Error):
                return Message(answer, reply_to=message)
            values = {} if answer is None else {"client-id": answer}
            return Message(RecordDict({"config": ConfigRecord(values)}), reply_to=message)

    return Grid()


def test_a_grid_that_knows_is_not_asked(fakes: Any) -> None:
    grid = fakes.SavingGrid(3)
    directory = KnownClients()
    directory.await_clients(grid)
    assert directory.client_ids(grid) == directory.names(grid) == {1000: 0, 1001: 1, 1002: 2}
    assert grid.sent == []


def test_a_node_that_is_gone_keeps_its_name(fakes: Any) -> None:
    grid = asking(fakes, {50: 7, 60: 8})
    directory = ClientDirectory()
    directory.client_ids(grid)
    del grid.answers[60]
    assert directory.client_ids(grid) == {50: 7}
    assert directory.names(grid) == {50: 7, 60: 8}


def test_every_node_is_asked_once(fakes: Any) -> None:
    grid = asking(fakes, {50: 7, 60: 8})
    directory = ClientDirectory()
    assert directory.client_ids(grid) == {50: 7, 60: 8}
    grid.answers[70] = 9
    assert directory.client_ids(grid) == {50: 7, 60: 8, 70: 9}
    del grid.answers[60]
    assert directory.client_ids(grid) == {50: 7, 70: 9}
    assert sorted(grid.asked) == [50, 60, 70]


def test_of_two_nodes_for_a_client_the_newest_wins(fakes: Any) -> None:
    grid = asking(fakes, {50: 7, 60: 8})
    directory = ClientDirectory()
    directory.client_ids(grid)
    grid.answers[40] = 7
    assert directory.client_ids(grid) == {60: 8, 40: 7}
    del grid.answers[40]  # the restarted node goes again, the old one is still there
    assert directory.client_ids(grid) == {50: 7, 60: 8}


def test_nodes_without_an_answer_are_left_out(fakes: Any) -> None:
    grid = asking(fakes, {50: 7, 60: Error(1, "ValueError: no partition-id"), 70: None, 80: -1, 90: True})
    assert ClientDirectory().client_ids(grid) == {50: 7}


def test_nobody_is_an_error_that_says_why(fakes: Any) -> None:
    directory = ClientDirectory(wait_seconds=0.0)
    with pytest.raises(FedMoEError, match="no client connected within 0 s"):
        directory.client_ids(asking(fakes, {}))
    with pytest.raises(FedMoEError, match=r"none of 1 connected nodes told its client id .*node 60: ValueError: no id"):
        directory.client_ids(asking(fakes, {60: Error(1, "ValueError: no id\nTraceback")}))


def test_it_waits_for_the_first_client_and_says_so_once(fakes: Any) -> None:
    grid = asking(fakes, {})
    looks = iter(([], [], [50]))
    grid.get_node_ids = lambda: next(looks)
    grid.answers[50] = 7
    notes: list[str] = []
    directory = ClientDirectory(wait_seconds=5.0, poll_seconds=0.0, note=notes.append)
    assert directory.client_ids(grid) == {50: 7}
    assert notes == ["waiting for clients to connect"]
