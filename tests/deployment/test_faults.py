"""Real processes are killed, stopped and kept out while they work; each test says what was lost and for how long."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from real_processes import SMALL, Federation, final_arrays, records, simulated, wait_for

from fedmoe_client.store.folder import StateFolder

pytestmark = pytest.mark.faults
# A training that takes a few seconds, so that it can be hit.
LONG = "local_epochs=400"
Report = Callable[[str], None]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Print a measurement even where output is captured: docs/deployed.md quotes them."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n  measured: {text}")

    return say


def trainings(federation: Federation, client: int) -> int:
    """Return how many training messages a node has begun with."""
    return (federation.client_dir(client) / "logs" / "supernode.log").read_text().count("Receiving: train message")


def connections(federation: Federation, client: int) -> int:
    return (federation.client_dir(client) / "logs" / "supernode.log").read_text().count("SuperNode ID:")


def rounds_done(federation: Federation) -> list[dict[str, Any]]:
    if not federation.runs.exists():
        return []
    path = federation.run_dir() / "metrics.jsonl"
    return records(federation.run_dir()) if path.exists() else []


@contextmanager
def running(federation: Federation, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Submit a run and make sure that nobody waits for it for ever."""
    run = federation.start_run(*SMALL, f"save_dir={federation.runs}", *words)
    try:
        yield run
    finally:
        if run.poll() is None:
            run.kill()
        run.communicate()


def in_training(federation: Federation, client: int, number: int) -> None:
    """Wait until a node is in the middle of its training of a round."""
    wait_for(lambda: trainings(federation, client) >= number, 150, f"training {number} of client {client}")
    worker = federation.process(client, "fedmoe_client.device.resident")
    before = sum(worker.cpu_times()[:2])
    wait_for(lambda: sum(worker.cpu_times()[:2]) > before + 0.1, 60, "its worker is busy")


def ended(run: subprocess.Popen[str], status: int, seconds: float = 280) -> str:
    said, _ = run.communicate(timeout=seconds)
    assert run.returncode == status, said
    return said


def kept_rounds(federation: Federation, client: int) -> list[int]:
    """Return the rounds after which a client has kept its private parameters, the newest last."""
    folder = federation.client_dir(client) / "state"
    (file,) = folder.glob("private-*.state")
    state = StateFolder(folder).load(file.stem)
    assert state is not None
    return [entry["round"] for entry in state.about["entries"] if entry["names"]]


def failed_in(record: dict[str, Any]) -> dict[int, str]:
    return {failure["client"]: failure["reason"] for failure in record["failed"]}


def test_a_node_killed_in_a_round_comes_back_with_its_state(federation: Federation, report: Report) -> None:
    federation.up()
    with running(federation, "num_rounds=6", LONG) as run:
        in_training(federation, 1, 4)  # private parameters are kept since round 3
        before = connections(federation, 1)
        killed = time.monotonic()
        for program in ("flower-supernode", "fedmoe_client.device.resident"):
            federation.process(1, program).kill()
        wait_for(lambda: connections(federation, 1) > before, 100, "the node connects again")
        back = time.monotonic() - killed
        wait_for(lambda: len(rounds_done(federation)) >= 4, 100, "the round goes on without it")
        gone_on = time.monotonic() - killed
        ended(run, 0)
    rows = rounds_done(federation)
    assert failed_in(rows[3]).keys() == {1}
    assert all(not row["failed"] for row in [*rows[:3], *rows[5:]])
    assert json.loads(result(federation))["status"] == "completed"
    assert kept_rounds(federation, 0)[-3:] == [4, 5, 6]
    assert [number for number in kept_rounds(federation, 1) if number < 5] == [3]  # what was there before outlived it
    report(
        f"node and its worker killed (SIGKILL): connected again after {back:.1f} s; round done after {gone_on:.1f} s"
    )
    lost = [row["round"] for row in rows if row["failed"]]
    report(f"rounds without its work: {lost}; reason: {failed_in(rows[3])[1]}")


def test_a_run_whose_server_is_killed_goes_on_from_its_checkpoint(federation: Federation, report: Report) -> None:
    expected = simulated(federation.root, LONG)
    federation.up()
    with running(federation, LONG) as run:
        in_training(federation, 0, 4)
        before = federation.process(None, "flower-superlink")
        killed = time.monotonic()
        before.kill()
        wait_for(lambda: len(list((federation.server_dir / "runs").iterdir())) == 2, 150, "it is gone on with")
        report(f"server killed (SIGKILL): 'run' went on by itself after {time.monotonic() - killed:.1f} s")
        said = ended(run, 0)
        report(f"the last rounds and the evaluation were done after {time.monotonic() - killed:.1f} s")
    assert "was killed after round 3; run " in said
    assert federation.process(None, "flower-superlink").pid != before.pid
    deployed, wanted = final_arrays(federation.run_dir()), final_arrays(expected)
    assert [name for name in wanted if wanted[name].tobytes() != deployed[name].tobytes()] == []
    report("final parameters: bit for bit those of the uninterrupted simulation")


def test_a_straggler_is_left_out_and_named_and_its_late_reply_dropped(federation: Federation, report: Report) -> None:
    federation.up()
    with running(federation, "num_rounds=5", "round_deadline=40", LONG) as run:
        in_training(federation, 2, 2)
        slow = federation.process(2, "fedmoe_client.device.resident")
        slow.suspend()
        stopped = time.monotonic()
        wait_for(lambda: len(rounds_done(federation)) >= 2, 90, "the round goes on")
        report(f"worker stopped (SIGSTOP) with a deadline of 40 s: round done {time.monotonic() - stopped:.1f} s later")
        slow.resume()
        ended(run, 0)
    rows = rounds_done(federation)
    assert failed_in(rows[1]) == {2: "no reply in time"}
    assert rows[-1]["failed"] == []
    assert rows[1]["train"]["loss"] is not None
    report(f"rounds without it: {[row['round'] for row in rows if row['failed']]}")


def test_too_few_replies_end_the_run(federation: Federation) -> None:
    federation.up()
    # A deadline that the first round, in which the nodes load everything, keeps on a busy machine too.
    with running(federation, "round_deadline=40", "min_reply_fraction=0.5", "max_failed_rounds=1", LONG) as run:
        in_training(federation, 0, 2)
        stopped = [federation.process(client, "fedmoe_client.device.resident") for client in (0, 1)]
        for process in stopped:
            process.suspend()
        said = ended(run, 1)
        for process in stopped:
            process.resume()
    assert "only 1 of 3 clients replied" in said
    assert "client 0 (train): no reply in time" in said


def test_who_is_kept_out(federation: Federation, report: Report) -> None:
    """An unregistered key, another authority, another catalogue; a federation that never becomes large enough."""
    federation.up()
    for client in range(3):
        federation.client(client, "down")
    assert "connected to" in federation.client_up(2, "--plain")  # an app as Flower installs and starts it
    keys = federation.client_dir(0) / "client"
    for path in (keys, keys.with_name("client.pub")):
        path.rename(path.with_name(f"registered-{path.name}"))
    federation.client(0, "enrol", "--client-id", 0)
    assert "not connected yet" in federation.client_up(0, status=1)

    from fedmoe_server.deploy.certificates import own_certificates

    other = own_certificates(federation.root / "other", ["127.0.0.1"]).authority
    words = ("--server", federation.address, "--history", federation.history(1))
    assert "not connected yet" in federation.client(1, "up", "--ca", other, *words, status=1)

    said = federation.server("run", *SMALL, f"save_dir={federation.runs}", "wait_seconds=15", status=1)
    assert "only 1 clients are connected after 15 s, deployment.min_clients asks for 3" in said
    for client in (0, 1):
        log = (federation.client_dir(client) / "logs" / "supernode.log").read_text()
        assert "Receiving" not in log
        assert connections(federation, client) == 1  # that of before
        report(refusal(federation, client))

    # Another model version: the app as the node has it is of another form.
    (version,) = federation.client_dir(2).glob("flower/apps/*/model/version.py")
    text, changes = re.subn(r"^FORM = \d+$", "FORM = 999", version.read_text(), flags=re.MULTILINE)
    assert changes == 1
    version.write_text(text)
    said = left_out(federation)
    assert re.search(r"model version is not the server's: \d+-(\w+) at the server, 999-(\w+) at the client", said)
    report(said)

    federation.client(2, "down")
    other_catalogue = federation.root / "other-catalogue"
    federation.server("catalogue", *SMALL, "data.synthetic.clusters=7", "--out", other_catalogue)
    words = ("--server", federation.address, "--history", federation.history(2))
    assert "connected to" in federation.client(2, "up", *words, "--catalogue", other_catalogue)
    said = left_out(federation)
    assert re.search(r"text features is not the server's: (\w{16}) at the server, (\w{16}) at the client", said)
    report(said)


def left_out(federation: Federation) -> str:
    """Run with client 2 alone, which the run does not accept; return what is said of it."""
    words = (*SMALL, f"save_dir={federation.runs}", "wait_seconds=5", "min_clients=1")
    said = federation.server("run", *words, status=1)
    return next(line for line in said.splitlines() if line.startswith("client 2 is left out"))


def refusal(federation: Federation, client: int) -> str:
    """Return what a node that is kept out says, and how it ended."""
    lines = (federation.client_dir(client) / "logs" / "supernode.log").read_text().splitlines()
    ends = (federation.client_dir(client) / "logs" / "supervisor.log").read_text().splitlines()
    said = next((line for line in lines if "SuperLink" in line and "Starting" not in line), lines[-1])
    return f"client {client}: {said.strip()} | {next(line for line in ends if 'ended' in line)}"


def result(federation: Federation) -> str:
    return (federation.run_dir() / "result.json").read_text()
