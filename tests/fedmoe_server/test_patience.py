"""A silent client costs the others half a minute, not the deadline; whoever is merely slow has as long as they took."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

import fedmoe_server.deploy.patience as patience
from fedmoe_server.deploy.patience import PatientGrid


class Answers:
    """A grid whose client n answers ``seconds[n]`` after it was asked, None: never; sleeping moves its clock."""

    def __init__(self, *seconds: float | None) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.mark = "the grid's own"

    def push_messages(self, messages: list[Message]) -> list[str]:
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
        self.messages = {message.metadata.message_id: message for message in messages}
        return list(self.messages)

    def pull_messages(self, ids: set[str]) -> list[Message]:
        there = [each for each in sorted(ids) if (at := self.seconds[int(each)]) is not None and at <= self.now]
        return [Message(RecordDict(), reply_to=self.messages[each]) for each in there]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def waited(monkeypatch: pytest.MonkeyPatch, fakes: Any, answers: Answers, rest: float, deadline: float | None) -> int:
    """Return how many replies came in time."""
    fakes.FakeGrid()  # makes this process one that may make messages
    monkeypatch.setattr(patience.time, "sleep", answers.sleep)
    grid = PatientGrid(answers, rest, lambda: answers.now)  # type: ignore[arg-type]
    asked = [Message(RecordDict({"config": ConfigRecord()}), 7 + n, "train") for n in range(len(answers.seconds))]
    return len(grid.send_and_receive(asked, timeout=deadline))


@pytest.mark.parametrize(
    ("seconds", "rest", "came", "end"),
    [
        ((5.0, 6.0, 6.0), 30.0, 3, 6.0),
        ((5.0, 6.0, None), 30.0, 2, 36.0),  # the case of the operator: 600 s before
        ((5.0, 6.0, 30.0), 30.0, 3, 30.0),  # slow, not silent
        ((90.0, 99.0, 180.0), 30.0, 3, 180.0),  # slow rounds: as long again as the others took
        ((90.0, 99.0, None), 30.0, 2, 189.0),
        ((6.0, None, None), 30.0, 1, 600.0),  # most are silent: the deadline
        ((None,), 30.0, 0, 600.0),
        ((5.0, 6.0, None), 0.0, 2, 600.0),  # as before
    ],
)
def test_how_long_a_round_waits(
    monkeypatch: pytest.MonkeyPatch, fakes: Any, seconds: tuple[float | None, ...], rest: float, came: int, end: float
) -> None:
    answers = Answers(*seconds)
    monkeypatch.setattr(patience, "SHORTEST_POLL", patience.POLL)  # looks every three seconds: the ends are even
    assert waited(monkeypatch, fakes, answers, rest, 600.0) == came
    assert answers.now == pytest.approx(end, abs=1e-6)


def test_quick_answers_are_seen_quickly(monkeypatch: pytest.MonkeyPatch, fakes: Any) -> None:
    quick = Answers(0.3, 0.5)
    assert waited(monkeypatch, fakes, quick, 30.0, 600.0) == 2
    assert quick.now < 0.8
    slow = Answers(100.0)
    assert waited(monkeypatch, fakes, slow, 30.0, 600.0) == 1
    assert slow.now < 100.0 + patience.POLL


def test_all_else_is_the_grids_own() -> None:
    assert PatientGrid(Answers(), 30.0).mark == "the grid's own"  # type: ignore[arg-type]
