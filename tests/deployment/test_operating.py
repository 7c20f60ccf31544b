"""A run as its operator sees it: followed, left, found again, looked at, stopped, and two at once; real processes."""

from __future__ import annotations

import re
import signal
import time

import pytest
import yaml
from real_processes import SMALL, Federation, final_arrays, records, simulated, wait_for

pytestmark = pytest.mark.faults


def lines(federation: Federation) -> list[list[str]]:
    return [line.split() for line in federation.server("runs").splitlines()]


def test_a_run_is_left_found_again_looked_at_and_stopped(federation: Federation) -> None:
    federation.up()
    assert "no run was submitted yet" in federation.server("runs")
    run = federation.start_run(*SMALL, f"save_dir={federation.runs}", "num_rounds=200")
    assert run.stdout is not None
    said = run.stdout.readline() + run.stdout.readline()  # how to simulate it comes first
    (number,) = re.findall(r"run (\d+) submitted", said)
    wait_for(lambda: federation.runs.exists() and len(list(federation.runs.glob("*/metrics.jsonl"))) == 1, 120, "a run")
    wait_for(lambda: len(records(federation.run_dir())) >= 2, 120, "two rounds")
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=20)
    assert run.returncode == 130
    assert f"python -m fedmoe_server follow {number}" in said
    assert f"python -m fedmoe_server stop {number}" in said

    federation.kill_client(
        2
    )  # it does not say good-bye: the server asks it until its heartbeats lapse, after 2 minutes
    wait_for(lambda: any(row["failed"] for row in records(federation.run_dir())), 60, "a round without client 2")
    online = "clients  2 of 3 admitted are online"
    wait_for(lambda: online in federation.server("status"), 240, "that client 2 is missed")
    shown = federation.server("status")
    assert f"{number}: running" in shown
    assert "superlink runs, last sign of life" in shown and "superexec runs" in shown
    (missing,) = (line for line in shown.splitlines() if "client 2:" in line)
    assert re.search(r"missing since 20\S+ \d\d:\d\d:\d\d UTC; failed (\d+ times, last )?in round \d", missing)
    assert "left" in shown and "MB to clients" in shown and "GB free" in shown
    logged = (federation.server_dir / "logs" / "serverapp.log").read_text()
    assert f"INFO run={number} round   2/200" in logged
    assert f"run={number} client=0 " in (federation.client_dir(0) / "logs" / "superexec.log").read_text()
    assert [row[0] for row in lines(federation)] == [number]
    assert lines(federation)[0][3] == "running"

    begun = time.monotonic()
    followed = federation.command("fedmoe_server", "stop", "--dir", federation.server_dir)
    assert f"run {number} was stopped" in followed
    assert time.monotonic() - begun < 60
    assert lines(federation)[0][3] == "stopped"
    again = federation.server("follow", number, status=1)
    assert "round   2/200" in again  # from its beginning
    assert f"run {number} was stopped; go on from its last checkpoint with" in again
    assert "no run is going on" in federation.server("stop", status=2)
    assert "knows no run 'x'" in federation.server("follow", "x", status=2)
    assert not (federation.run_dir() / "result.json").exists()  # it did not fail
    federation.server("down")
    assert "server   DOWN" in federation.server("status", status=1)


def test_two_runs_at_once_keep_their_settings(federation: Federation) -> None:
    """Each is, to the bit, the run that it is alone."""
    wanted = simulated(federation.root)
    federation.up()
    first = federation.start_run(*SMALL, f"save_dir={federation.runs}", "name=first")
    second = federation.start_run(
        *SMALL, f"save_dir={federation.runs}", "name=second", "learning_rate=0.02", "num_rounds=3"
    )
    for run in (first, second):
        said, _ = run.communicate(timeout=280)
        assert run.returncode == 0, said + federation.logs()
    (one,), (two,) = (list(federation.runs.glob(f"*-{name}")) for name in ("first", "second"))
    assert len(records(one)) == 5 and len(records(two)) == 3
    assert yaml.safe_load((two / "settings.yaml").read_text())["training"]["learning_rate"] == 0.02
    assert [row[3] for row in lines(federation)] == ["completed", "completed"]
    assert all(not row["failed"] for row in [*records(one), *records(two)])
    deployed, alone = final_arrays(one), final_arrays(wanted)
    assert [name for name in alone if alone[name].tobytes() != deployed[name].tobytes()] == []
    assert not list(federation.server_dir.glob("app-*"))


def test_a_client_joins_in_mid_run_and_another_is_revoked(federation: Federation) -> None:
    """The round under way goes on without the revoked one; its key and its number do not come back."""
    federation.clients = 2
    federation.up()
    run = federation.start_run(*SMALL, f"save_dir={federation.runs}", "num_rounds=300", "min_clients=2")
    wait_for(lambda: federation.runs.exists() and len(list(federation.runs.glob("*/metrics.jsonl"))) == 1, 120, "a run")
    wait_for(lambda: len(records(federation.run_dir())) >= 1, 120, "a round")
    federation.clients = 3
    federation.write_histories()
    federation.client(2, "enrol", "--client-id", 2)
    federation.server("admit", federation.client_dir(2) / "client.pub")
    federation.client_up(2)
    wait_for(lambda: records(federation.run_dir())[-1]["clients"] == 3, 120, "a round with client 2")
    assert not records(federation.run_dir())[-1]["failed"]

    assert "no client 7 is admitted" in federation.server("revoke", 0, 7, status=2)
    assert "client 0 was revoked" in federation.server("revoke", 0)
    begun = len(records(federation.run_dir()))
    wait_for(lambda: len(records(federation.run_dir())) >= begun + 3, 120, "three more rounds")
    assert [row["clients"] for row in records(federation.run_dir())[-2:]] == [2, 2]
    listed = federation.server("clients").splitlines()
    assert [(line.split()[1], line.endswith("revoked")) for line in listed] == [("1", False), ("2", False), ("0", True)]
    assert "clients  2 of 2 admitted are online" in federation.server("status")
    key = federation.client_dir(0) / "client.pub"
    assert "was revoked: neither comes back" in federation.server("admit", key, status=2)
    federation.command("fedmoe_client", "enrol", "--client-id", 0, "--dir", federation.root / "again")
    again = federation.server("admit", federation.root / "again" / "client.pub", status=2)
    assert "asks for 0, a revoked number" in again
    federation.client(0, "down")
    assert "not connected yet" in federation.client_up(0, status=1)  # with its old key
    federation.server("stop")
    assert run.wait(60) == 1
