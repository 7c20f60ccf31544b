"""Five real clients under secure aggregation over gRPC with TLS, two of whom are killed in the middle of a round."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_processes import Federation, assert_same_bits, records
from test_secure_run import USERS, WORDS, SecureLoopback, gone

pytestmark = pytest.mark.deployment
REAL = (*WORDS, "min_clients=3", "wait_seconds=280", "round_deadline=280", "rest_seconds=30")
LONG = 900  # seconds; a busy machine is no error


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, USERS, REAL)
    yield made
    if made.processes():
        made.down()
    assert not made.processes()


def phases(federation: Federation, client: int) -> dict[int, str]:
    """Return the sums that a client is in -> the phase that it has answered last."""
    try:
        note = json.loads((federation.client_dir(client) / "state" / "secure.json").read_text())
    except FileNotFoundError:
        return {}
    return {each["session"][1]: each["phase"] for each in note["sums"]}


def kill_when(federation: Federation, client: int, reached: str, rounds: int) -> Callable[[], bool]:
    """Return what kills all of a client's processes (SIGKILL) once it has answered a phase of the second sum.

    rounds: that must be done before. What is returned says whether it has killed.
    """
    known = list(federation.processes_of(client))  # a search takes longer than a phase

    def looked() -> bool:
        if phases(federation, client).get(2) != reached or done(federation) < rounds:
            return False
        federation.kill_client(client, known)
        return True

    return looked


def done(federation: Federation) -> int:
    """Return how many rounds are done."""
    return sum(len(file.read_text().splitlines()) for file in federation.runs.glob("*/metrics.jsonl"))


def test_two_clients_are_killed_in_a_round(five: Federation) -> None:
    five.up(more_words=lambda client: ("--require-secure-aggregation", "3"))
    run = five.start_run(*REAL, f"save_dir={five.runs}")
    try:
        for killing in (
            # The sum of round 2 is prepared: client 1 is a member, and does not send its vector.
            kill_when(five, 1, "shares", rounds=1),
            kill_when(five, 3, "agreed", rounds=1),
        ):
            deadline = time.monotonic() + LONG
            while not killing():
                assert time.monotonic() < deadline and run.poll() is None, five.logs()
                time.sleep(0.005)
        said, _ = run.communicate(timeout=LONG)
        assert run.returncode == 0, said + five.logs()
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()
    assert "Secure aggregation: the server sees sums over at least 3 clients" in said

    # The first is missing from round 2 on, the second from round 3 on: as in the simulation, by the bit.
    fails = [gone(1, 2, "masked"), gone(3, 2, "unmasking")]
    simulated = SecureLoopback(five.root / "simulation", simulated=True, fails=fails).serve()
    deployed = five.run_dir()
    assert_same_bits(deployed, simulated)
    missing = [{each["client"] for each in row["failed"] if each["stage"] == "train"} for row in records(deployed)]
    assert missing[:2] == [set(), {1}]
    assert missing[2] <= {1, 3}  # or they are no longer asked
