"""What goes wrong between ``up`` and the first round: ports, clocks, proxies, and two people at once."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from real_processes import SMALL, Federation

from fedmoe.deployment.folder import Folder
from fedmoe.deployment.processes import running_supervisor
from fedmoe.files import read_json

AHEAD = """
import datetime, os, sys
if "AHEAD" in os.environ and any(word.endswith("flower-supernode") for word in sys.orig_argv):
    import flwr.client.grpc_rere_client.node_auth_client_interceptor as signs
    true = signs.now
    signs.now = lambda: true() + datetime.timedelta(seconds=float(os.environ["AHEAD"]))
"""


@pytest.mark.deployment
def test_a_taken_port_ends_up_in_one_line(federation: Federation) -> None:
    for option, address in (("--address", federation.address), ("--control", federation.control)):
        host, _, port = address.rpartition(":")
        with socket.create_server((host, int(port))):
            for how in ((), ("--foreground",)):
                words = ("up", "--address", federation.address, "--control", federation.control, *how)
                said = federation.server(*words, status=2)
                assert said.startswith(f"error: {option} {address} cannot be used (Address already in use)"), said
                assert len(said.splitlines()) == 1
    assert not federation.processes()


@pytest.mark.faults
def test_a_supervisor_that_was_killed_leaves_nothing_in_the_way(federation: Federation) -> None:
    words = ("up", "--address", federation.address, "--control", federation.control)
    federation.server(*words)
    left = read_json(federation.server_dir / "supervisor.json")["programs"]["superlink"]["process"]
    supervisor = running_supervisor(Folder(federation.server_dir))
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    assert "the server runs" in federation.server(*words)
    assert left not in [process.pid for process in federation.processes()]
    assert federation.server("status").startswith("server   up; superlink runs")


@pytest.mark.faults
def test_behind_a_proxy_two_admit_one_number_and_clocks_differ(federation: Federation) -> None:
    """One federation for three faults: nothing of this machine goes to a proxy, one of two keys is admitted, and a
    clock that is 100 s ahead does no harm, while one that is an hour ahead is told so."""
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"), "http://127.0.0.1:9")
    federation.server("up", "--address", federation.address, "--control", federation.control, **proxy)
    federation.server("catalogue", *SMALL, "--out", federation.root / "catalogue")
    federation.write_histories()
    for client in range(2):
        federation.client(client, "enrol", "--client-id", 5)
    admitting = [
        subprocess.Popen(
            [sys.executable, "-m", "fedmoe_server", "admit", str(federation.client_dir(client) / "client.pub")]
            + ["--dir", str(federation.server_dir)],
            cwd=federation.root,
            env=federation.environment(**proxy),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for client in range(2)
    ]
    said = [process.communicate(timeout=200)[0] for process in admitting]
    assert sorted(process.returncode for process in admitting) == [0, 2], said
    assert any("asks for client id 5, which another key has" in text for text in said)
    assert len(federation.server("clients").splitlines()) == 1
    first = next(client for client in range(2) if admitting[client].returncode == 0)

    clock = federation.root / "clock"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(AHEAD)
    ahead = {"PYTHONPATH": f"{clock}:{federation.environment()['PYTHONPATH']}"}
    assert "not connected yet" in (said := federation.client_up(first, status=1, AHEAD="3600", **ahead))
    assert "this client's clock is more than 5 minutes from the server's, which says 20" in said
    federation.client(first, "down")
    assert "connected to" in federation.client_up(first, AHEAD="100", **ahead)
    words = (*SMALL, "min_clients=1", "num_rounds=2", f"save_dir={federation.runs}")
    federation.server("run", *words, **proxy)
    assert Path(federation.run_dir() / "report.md").exists()
