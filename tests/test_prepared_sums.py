"""The next sum's keys and shares travel with the end of the sum before, where the same clients are asked again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message
from test_deployed_run import FIRST_NODE
from test_secure_run import SecureLoopback, gone, model_of, results

from fedmoe.secure.messages import Invitation, Session
from fedmoe.secure.phases import NEXT, RECORD
from fedmoe.secure.wire import from_text, to_text

FRESH, PREPARED = ["keys", "shares", "masked", "unmasking"], ["masked", "unmasking"]
WORDS = ("num_rounds=3", "evaluate_every=0")


def phases(grid: SecureLoopback) -> list[list[str]]:
    """Return the phases that each exchange took, in their order."""
    kinds = [kind for kind, _ in groupby(message.metadata.message_type for message in grid.sent) if kind != "query"]
    found: list[list[str]] = []
    for phase in (kind.partition(".")[2] for kind in kinds):
        if phase == "keys" or (phase == "masked" and found[-1][-1] != "shares"):
            found.append([])
        found[-1].append(phase)
    return found


def test_a_federation_in_which_everybody_takes_part_needs_two_messages_an_exchange(tmp_path: Path) -> None:
    grid = SecureLoopback(tmp_path / "deployment", "num_rounds=3", "evaluate_every=2")
    grid.serve()
    first, *others = phases(grid)
    assert first == FRESH
    assert others == [PREPARED] * len(others)
    assert len(others) >= 5  # two rounds, and evaluations


def test_who_vanishes_makes_the_next_sum_begin_anew(tmp_path: Path) -> None:
    """Client 2 is gone in the last phase of round 1: its shares for round 2 are missing, and are not waited for."""

    def fails(grid: SecureLoopback, message: Message) -> bool:
        meant = message.metadata.dst_node_id == FIRST_NODE + 2
        return meant and grid.round == 1 and message.metadata.message_type == "train.unmasking"

    grid = SecureLoopback(tmp_path / "deployment", *WORDS, fails=[fails])
    run = grid.serve()
    assert phases(grid) == [FRESH, FRESH, PREPARED, *[PREPARED] * 2]  # three rounds, validation and test
    everyone = SecureLoopback(tmp_path / "everyone", *WORDS).serve()
    assert model_of(run) == model_of(everyone)
    assert results(run)["test"] == results(everyone)["test"]


def test_other_clients_than_those_of_the_sum_before_begin_anew(tmp_path: Path) -> None:
    grid = SecureLoopback(tmp_path / "deployment", *WORDS, "client_fraction=0.8", "num_rounds=4")
    grid.serve()
    asked = {}
    for message in grid.sent:
        if message.metadata.message_type == "train.masked":
            number = message.content.config_records["config"]["server-round"]
            asked.setdefault(number, set()).add(message.metadata.dst_node_id)
    cohorts = [asked[number] for number in sorted(asked)]
    expected, before, prepared = [], None, False
    everyone = set(range(FIRST_NODE, FIRST_NODE + 5))
    for cohort in [*cohorts, everyone, everyone]:  # the last two are validation and test
        expected.append(PREPARED if prepared and cohort == before else FRESH)
        prepared, before = before in (None, cohort), cohort
    assert phases(grid) == expected
    assert len({frozenset(cohort) for cohort in cohorts}) > 1


@pytest.mark.parametrize("phase", ["masked", "unmasking"])
@pytest.mark.parametrize("answer", ["nonsense", "{}", 7, None])
def test_garbage_that_travels_along_harms_no_sum(tmp_path: Path, phase: str, answer: Any) -> None:
    class Garbage(SecureLoopback):
        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            if message.metadata.dst_node_id == FIRST_NODE + 2 and message.metadata.message_type == f"train.{phase}":
                said = dict(reply.content.config_records[RECORD])
                said.pop(NEXT)
                reply.content[RECORD] = ConfigRecord(said if answer is None else {**said, NEXT: answer})
            return reply

    grid = Garbage(tmp_path / "deployment", *WORDS)
    run = grid.serve()
    assert phases(grid) == [FRESH, FRESH, FRESH, FRESH, PREPARED]  # three rounds, validation and test
    everyone = SecureLoopback(tmp_path / "everyone", *WORDS).serve()
    assert model_of(run) == model_of(everyone)


def test_a_client_answers_the_sum_that_goes_on_whatever_travels_along(tmp_path: Path) -> None:
    class Lying(SecureLoopback):
        """Its invitations to the next sum are of another run."""

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            asked = list(messages)
            for message in asked:
                if message.metadata.message_type == "train.masked" and NEXT in message.content.config_records[RECORD]:
                    record = message.content.config_records[RECORD]
                    invitation = from_text(Invitation, record[NEXT])
                    record[NEXT] = to_text(Invitation(Session("8", 9), invitation.terms))
            return super().send_and_receive(asked, timeout=timeout)

    grid = Lying(tmp_path / "deployment", *WORDS)
    grid.serve()
    said = [m for m in grid.received if m.metadata.message_type == "train.masked"]
    assert said
    assert all(set(message.content.config_records[RECORD]) == {"words", "layout", "agreed"} for message in said)
    assert not [message for message in grid.received if message.has_error()]
    assert phases(grid)[:3] == [FRESH] * 3


def test_the_simulation_has_the_bits_of_prepared_sums_with_missing_clients(tmp_path: Path) -> None:
    fails = [gone(4, 3, "masked")]
    words = ("num_rounds=4", "evaluate_every=4")
    secure = SecureLoopback(tmp_path / "deployment", *words, fails=fails)
    simulated = SecureLoopback(tmp_path / "simulation", *words, simulated=True, fails=fails)
    assert model_of(secure.serve()) == model_of(simulated.serve())
    assert phases(secure)[:3] == [FRESH, PREPARED, ["masked", "survivors", "unmasking"]]


def test_a_client_joins_and_another_leaves_between_sums(tmp_path: Path) -> None:
    class Changing(SecureLoopback):
        """Client 4 comes for round 3, client 0 is gone from round 5 on."""

        def get_node_ids(self) -> Iterable[int]:
            here = {0, 1, 2, 3} if self.round < 2 else {0, 1, 2, 3, 4} if self.round < 4 else {1, 2, 3, 4}
            return [FIRST_NODE + user for user in sorted(here)]

    words = ("num_rounds=5", "evaluate_every=0", "min_clients=4")
    grid, simulated = (
        Changing(tmp_path / name, *words, simulated=name == "simulation") for name in ("deployment", "simulation")
    )
    run = grid.serve()
    rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["clients"] for row in rounds] == [4, 4, 5, 5, 4]
    assert not any(row["failed"] for row in rounds)
    # Five rounds, validation and test: a sum is prepared once the same clients were asked twice.
    assert phases(grid) == [FRESH, PREPARED, FRESH, FRESH, FRESH, FRESH, PREPARED]
    assert model_of(run) == model_of(simulated.serve())
