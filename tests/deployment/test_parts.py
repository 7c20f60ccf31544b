"""Parts of a running federation are hit one by one: each is back by itself, and lets in nobody who has no secret."""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from real_processes import Federation, records, wait_for
from test_faults import LONG, Report, ended, in_training, report, rounds_done, running

from fedmoe.deployment.flower_part import CONTROL_SECRET
from fedmoe.files import read_json

__all__ = ["report"]
METHOD = "/flwr.proto.Runtime/AcquireTask"
HELD = 12.0  # seconds; Flower by itself gives up after 5


def restarts(folder: Path) -> dict[str, int]:
    return {name: part["restarts"] for name, part in read_json(folder / "supervisor.json")["programs"].items()}


@pytest.mark.faults
def test_a_database_that_is_locked_for_long_ends_nobody(federation: Federation, report: Report) -> None:
    federation.up()
    with running(federation, "num_rounds=6", LONG) as run:
        in_training(federation, 1, 2)
        with sqlite3.connect(federation.server_dir / "superlink.db", isolation_level=None) as database:
            database.execute("PRAGMA busy_timeout = 60000")
            database.execute("BEGIN IMMEDIATE")
            time.sleep(HELD)
            database.execute("ROLLBACK")
        ended(run, 0)
    folders = [federation.server_dir, *map(federation.client_dir, range(3))]
    assert [number for folder in folders for number in restarts(folder).values()] == [0] * 8
    assert [row["failed"] for row in rounds_done(federation)] == [[]] * 6
    report(f"database locked for {HELD:.0f} s in a round: all rounds with all clients, no part started again")


@pytest.mark.faults
def test_a_killed_superexec_of_a_client_is_started_again(federation: Federation, report: Report) -> None:
    federation.up()
    with running(federation, "num_rounds=6", LONG) as run:
        in_training(federation, 1, 3)
        killed = time.monotonic()
        federation.process(1, "flower-superexec").kill()
        wait_for(lambda: len(rounds_done(federation)) >= 3, 60, "the round is done")
        report(f"superexec of a client killed in training: round done after {time.monotonic() - killed:.1f} s")
        ended(run, 0)
    assert restarts(federation.client_dir(1))["superexec"] >= 1
    rows = records(federation.run_dir())
    report(f"rounds without its work: {[row['round'] for row in rows if row['failed']]}")
    assert all(not row["failed"] for row in [*rows[:2], *rows[-2:]])


@pytest.mark.faults
def test_a_killed_superexec_of_the_server_is_started_again(federation: Federation, report: Report) -> None:
    federation.up()
    with running(federation, LONG) as run:
        in_training(federation, 0, 3)
        killed = time.monotonic()
        federation.process(None, "flower-superexec").kill()
        wait_for(lambda: len(list((federation.server_dir / "runs").iterdir())) == 2, 150, "it is gone on with")
        report(f"superexec of the server killed: 'run' went on by itself after {time.monotonic() - killed:.1f} s")
        said = ended(run, 0)
    assert "was killed after round 2; run " in said
    assert restarts(federation.server_dir) == {"superlink": 0, "superexec": 1}
    assert [row["round"] for row in rounds_done(federation)] == [1, 2, 3, 4, 5]


@pytest.mark.deployment
def test_who_has_no_secret_gets_no_run_and_no_task(federation: Federation) -> None:
    federation.up()
    for folder in (federation.server_dir, federation.client_dir(0)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in (folder / "secrets").iterdir())

    # What another account would need: the authority's certificate, which is no secret, and Flower's own command.
    stranger = federation.root / "stranger"
    stranger.mkdir()
    (stranger / "config.toml").write_text((federation.server_dir / "flower" / "config.toml").read_text())
    command = [str(Path(sys.executable).parent / "flwr"), "list", "fedmoe", "--format", "json"]
    environment = federation.environment(FLWR_HOME=str(stranger))
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert '"success": true' not in refused.stdout
    environment[CONTROL_SECRET] = str(stranger / "guess")
    (stranger / "guess").write_text("0" * 64)
    guessing = [sys.executable, "-m", "fedmoe.deployment.flower_part", *("flwr", *command[1:])]
    refused = subprocess.run(guessing, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert '"success": true' not in refused.stdout
    shutil.copy(federation.server_dir / "secrets" / "control", stranger / "guess")
    let_in = subprocess.run(guessing, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert '"success": true' in let_in.stdout, let_in.stdout + let_in.stderr

    secrets = federation.client_dir(0) / "secrets"
    words = federation.process(0, "flower-supernode").cmdline()
    address = f"127.0.0.1:{words[words.index('--port') + 1]}"
    for secret, allowed in ((None, False), (b"0" * 64, False), ((secrets / "superexec").read_bytes(), True)):
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        signs = (
            []
            if secret is None
            else [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({METHOD}))]
        )
        client = RuntimeHttpClient.from_server_address(
            server_address=address, insecure=True, root_certificates=None, interceptors=[version, *signs]
        )
        with nullcontext() if allowed else pytest.raises(httpx.HTTPStatusError, match="40[13]"):
            client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]))
        client.close()
