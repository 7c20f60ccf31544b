"""Server and client app together under secure aggregation, in this process: the simulation's bits, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message
from test_deployed_run import FIRST_NODE, Loopback, arrays_of
from test_deployed_run import WORDS as THREE

from fedmoe.deployment.keys import make_key_pair
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings
from fedmoe.secure.phases import PHASES
from fedmoe.wire import to_record
from fedmoe_client.store.folder import StateFolder
from fedmoe_server.report.report import write_report
from fedmoe_server.report.run_folder import RESULT

USERS = 5
OTHERS = ("data.synthetic.users", "num_rounds", "client_fraction", "evaluate_every", "max_failed_rounds")
WORDS = (
    *(word for word in THREE if not word.startswith(OTHERS)),
    *(f"data.synthetic.users={USERS}", "num_rounds=3", "client_fraction=1", "evaluate_every=3"),
    *("privacy.sum_bits=20", "privacy.dropouts=0.4", "min_reply_fraction=0.1", "max_failed_rounds=2", "wait_seconds=2"),
)
Fails = Callable[["SecureLoopback", Message], bool]


class SecureLoopback(Loopback):
    """Five clients or more, each with a key pair that the server has admitted.

    fails: whether a message finds nobody there; ``round`` is the round of training that goes on.
    """

    def __init__(
        self, folder: Path, *words: str, simulated: bool = False, fails: Iterable[Fails] = (), users: int = USERS
    ) -> None:
        self.folder = folder
        super().__init__(folder, 1, simulated, users, (*WORDS, *words))
        self.round, self._latest = 0, ""
        self.node: Callable[[int], dict[str, Any]] = lambda user: {}
        self.fail = lambda message: any(fail(self, message) for fail in fails)

    def admitted(self, user: int) -> str:
        return make_key_pair(self.folder / f"key-{user}", user).line

    def node_config(self, user: int) -> dict[str, Any]:
        own = {} if self.simulated else {"key": str(self.folder / f"key-{user}"), "answer-after": 0, **self.node(user)}
        return super().node_config(user) | own

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        asked = list(messages)
        kind = asked[0].metadata.message_type
        # A round begins with its keys, or with its vectors where keys and shares were had in the sum before.
        self.round += kind in ("train", "train.keys") or (kind == "train.masked" and self._latest != "train.shares")
        self._latest = kind
        return super().send_and_receive(asked, timeout=timeout)


def gone(user: int, from_round: int, from_phase: str) -> Fails:
    """Return that a client is not there from a phase of a round on.

    A simulation's training is the phase of masked vectors: who is gone later has taken part in that round.
    """

    def fails(grid: SecureLoopback, message: Message) -> bool:
        kind, _, phase = message.metadata.message_type.partition(".")
        place = PHASES.index(phase or "masked") if kind == "train" else len(PHASES)
        since = (from_round, PHASES.index(from_phase))
        return kind != "query" and message.metadata.dst_node_id == FIRST_NODE + user and (grid.round, place) >= since

    return fails


def results(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / RESULT).read_text())


def test_a_secure_run_equals_the_simulation(tmp_path: Path) -> None:
    secure = SecureLoopback(tmp_path / "deployment")
    runs = [secure.serve(), SecureLoopback(tmp_path / "simulation", simulated=True).serve()]
    assert arrays_of(runs[0]) == arrays_of(runs[1])
    for split in ("validation", "test"):
        assert results(runs[0])[split] == results(runs[1])[split]
    texts = [write_report(run).read_text() for run in runs]
    seen = [text.partition("## What the server saw\n\n")[2].partition("\n")[0] for text in texts]
    assert seen[0].startswith("Secure aggregation: the server sees sums over at least 3 clients")
    assert seen[1] == ""
    kinds = {message.metadata.message_type for message in secure.sent}
    every = {"masked", "unmasking"}  # keys and shares came with the sum before, and nobody vanished
    first = {f"train.{phase}" for phase in ("keys", "shares", *every)}
    assert kinds == {"query"} | first | {f"evaluate.{phase}" for phase in every}
    # Of a client come keys, shares, masked words and what they are, signatures: no arrays and no metrics.
    for reply in secure.received:
        assert set(reply.content) <= {"secure", "config"}
        for record in reply.content.config_records.values():
            assert set(record) - {"next"} in ({"answer"}, {"words", "layout", "agreed"}, {"client-id"})


def model_of(run_dir: Path) -> dict[str, bytes]:
    return {name: array for name, array in arrays_of(run_dir).items() if name.startswith("arrays")}


def test_clients_that_vanish_in_any_phase_cost_their_own_part_alone(tmp_path: Path) -> None:
    """Of two that vanish in round 2 the one has not sent its masked vector, the other has."""
    fails = [gone(1, 2, "masked"), gone(3, 2, "unmasking")]
    secure = SecureLoopback(tmp_path / "deployment", fails=fails)
    runs = [secure.serve(), SecureLoopback(tmp_path / "simulation", simulated=True, fails=fails).serve()]
    assert arrays_of(runs[0]) == arrays_of(runs[1])
    assert results(runs[0])["test"] == results(runs[1])["test"]
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for one, other in zip(*rows, strict=True):
        assert one["train"] == other["train"]
    assert [[failure["client"] for failure in row["failed"] if failure["stage"] == "train"] for row in rows[0]] == [
        [],
        [1],
        [1, 3],
    ]
    everyone = SecureLoopback(tmp_path / "everyone")
    assert arrays_of(everyone.serve()) != arrays_of(runs[0])


def test_below_the_threshold_a_round_fails_and_the_model_is_unchanged(tmp_path: Path) -> None:
    def fails(grid: SecureLoopback, message: Message) -> bool:
        user = message.metadata.dst_node_id - FIRST_NODE
        return grid.round == 2 and user < 3 and message.metadata.message_type == "train.unmasking"

    failed = SecureLoopback(tmp_path / "deployment", "num_rounds=2", "evaluate_every=0", fails=[fails]).serve()
    row = json.loads((failed / "metrics.jsonl").read_text().splitlines()[1])
    assert "train of round 2: secure sum 2: 2 clients gave shares" in row["failure"]
    assert "3 are needed" in row["failure"]
    one = SecureLoopback(tmp_path / "one", "num_rounds=1", "evaluate_every=0").serve()
    model = [
        {name: each for name, each in arrays_of(run).items() if name.startswith("arrays")} for run in (failed, one)
    ]
    assert model[0] == model[1] != {}


def test_nothing_is_asked_in_plain_whatever_the_grid_can_do(tmp_path: Path) -> None:
    class Reducing(SecureLoopback):
        to_record = staticmethod(to_record)

        def send_and_reduce(self, messages: Iterable[Message], reducer: Callable[[], Any]) -> list[Message]:
            raise AssertionError("replies were to be merged in plain")

    for deadline in ("0", "60"):
        words = (f"round_deadline={deadline}", "num_rounds=1", "privacy.secure_aggregation=on")
        grid = Reducing(tmp_path / deadline, *words)
        grid.serve()
        assert {each.metadata.message_type.partition(".")[2] for each in grid.sent} == {"", *PHASES} - {"survivors"}
        assert {each.metadata.message_type for each in grid.sent if "." not in each.metadata.message_type} == {"query"}


@pytest.mark.parametrize(
    ("word", "node", "reason"),
    [
        (
            "privacy.secure_aggregation=off",
            {"require-secure": 3},
            "answers only in secure sums over at least 3 clients",
        ),
        ("privacy.sum_bits=0", {"require-secure": 4}, "answers only in secure sums over at least 4 clients"),
        ("name=x", {"require-secure": 6}, "the sum may be over 3 clients, this client asks for 6"),
    ],
)
def test_a_client_that_requires_secure_sums_answers_in_no_other_way(
    tmp_path: Path, word: str, node: dict[str, Any], reason: str
) -> None:
    grid = SecureLoopback(tmp_path / "deployment", word, "max_failed_rounds=1")
    grid.node = lambda user: node
    with pytest.raises(FedMoEError):
        grid.serve()
    errors = [reply.error.reason for reply in grid.received if reply.has_error()]
    assert len(errors) == USERS
    assert all(reason in str(error) for error in errors)


def test_a_roster_pins_who_is_summed_with(tmp_path: Path) -> None:
    grid = SecureLoopback(tmp_path / "deployment", "max_failed_rounds=1")
    lines = [(grid.folder / f"key-{user}.pub").read_text() for user in range(USERS)]
    (grid.folder / "roster").write_text("".join(lines[:4]))
    grid.node = lambda user: {"roster": str(grid.folder / "roster")}
    with pytest.raises(FedMoEError, match="0 of 5 clients are left"):
        grid.serve()
    errors = {reply.error.reason for reply in grid.received if reply.has_error()}
    assert errors == {"secure aggregation refused (not-admitted): client 4 has no admitted key"}


@pytest.mark.parametrize(
    ("phase", "record"),
    [
        ("keys", {"answer": "{}"}),
        ("shares", {"answer": "nonsense"}),
        ("masked", {"words": b"abc", "layout": "{}"}),
        ("masked", {}),
        ("masked", {"words": bytes(4000), "layout": "the others', with a metric more"}),
        ("survivors", {"answer": 7}),
        ("unmasking", {}),
    ],
)
def test_a_client_that_answers_garbage_harms_itself_alone(tmp_path: Path, phase: str, record: dict[str, Any]) -> None:
    class Garbage(SecureLoopback):
        def _answer(self, message: Message) -> Message:
            reply = super()._answer(message)
            if message.metadata.dst_node_id == FIRST_NODE and message.metadata.message_type == f"train.{phase}":
                layout = json.loads(str(reply.content["secure"].get("layout", "{}")))
                if str(record.get("layout")).startswith("the others'"):
                    record["layout"] = json.dumps(layout | {"metrics": [*layout["metrics"], "lie"]})
                reply.content["secure"] = ConfigRecord(record)
            return reply

    words = ("num_rounds=1", "evaluate_every=0")
    run_dir = Garbage(tmp_path / "deployment", *words).serve()
    (row,) = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    assert row["failure"] is None
    summed = phase in ("survivors", "unmasking")
    assert [(each["client"], each["kind"]) for each in row["failed"]] == ([] if summed else [(0, "refused")])


def test_a_model_that_is_not_to_be_summed_is_not_trained(tmp_path: Path) -> None:
    grid = SecureLoopback(tmp_path / "deployment", "num_rounds=1")
    grid.serve()
    before = {path.name: path.read_bytes() for path in grid.state_dir(0).iterdir()}
    again = next(m for m in grid.sent if m.metadata.message_type == "train.masked")
    again.metadata.__dict__["_dst_node_id"] = FIRST_NODE
    assert "not in it" in grid._answer(again).error.reason
    assert {path.name: path.read_bytes() for path in grid.state_dir(0).iterdir()} == before


def test_what_was_answered_once_is_refused_after_a_restart(tmp_path: Path) -> None:
    grid = SecureLoopback(tmp_path / "deployment", "num_rounds=1")
    grid.serve()
    last = {message.metadata.message_type: message for message in grid.sent}
    said = {kind: grid._answer(message) for kind, message in last.items() if kind != "query"}
    assert all(reply.has_error() for reply in said.values())
    assert "already unmasked" in said["evaluate.unmasking"].error.reason
    assert "has begun it before" in said["train.keys"].error.reason
    for phase in ("shares", "masked", "unmasking"):
        assert "this client is not in it" in said[f"train.{phase}"].error.reason


def test_a_key_that_the_server_told_first_is_the_one_that_counts(tmp_path: Path) -> None:
    grid = SecureLoopback(tmp_path / "deployment", "num_rounds=1", "max_failed_rounds=1")
    other = make_key_pair(tmp_path / "other", 3).line
    StateFolder(grid.state_dir(0)).keep_note("admitted", {"3": other})
    grid.serve()  # the four others are enough
    errors = {reply.error.reason for reply in grid.received if reply.has_error()}
    assert errors == {
        "secure aggregation refused (signature): client 3: its keys are not signed with its admitted key for this sum"
    }
    assert StateFolder(grid.state_dir(0)).note("admitted")["3"] == other


def test_secure_aggregation_needs_integers(tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match="secure_aggregation adds integers up: set sum_bits too"):
        load_settings(["quick", "privacy.secure_aggregation=on", "privacy.sum_bits=0"])
    with pytest.raises(FedMoEError, match="secure_aggregation adds integers up: set privacy.sum_bits"):
        SecureLoopback(tmp_path / "deployment", "privacy.sum_bits=null", "privacy.secure_aggregation=on").serve()
