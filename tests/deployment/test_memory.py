"""What a client and a server hold in memory while nobody asks anything of them."""

from __future__ import annotations

import psutil
import pytest
from real_processes import SMALL, Federation, wait_for

from fedmoe.files import read_json
from fedmoe_client.device.resident_call import running

pytestmark = pytest.mark.deployment
IDLE = 250 * 2**20  # bytes: what a client that takes part in nothing may hold


def held(federation: Federation, client: int | None) -> int:
    """Return the proportional share (PSS) of all processes of a client (None: of the server), in bytes."""
    folder = federation.server_dir if client is None else federation.client_dir(client)
    supervisor = read_json(folder / "supervisor.json")
    programs = [supervisor["process"], *(each["process"] for each in supervisor["programs"].values())]
    return sum(int(psutil.Process(each).memory_full_info().pss) for each in programs)


def test_an_idle_client_is_light_before_and_after_a_run(federation: Federation) -> None:
    federation.clients = 1
    federation.up(more_words=lambda client: ("--keep-torch", "5"))
    assert held(federation, 0) < IDLE
    run = (*SMALL, f"save_dir={federation.runs}", "num_rounds=2", "min_clients=1")
    assert "completed" in federation.server("run", *run)
    state = federation.client_dir(0) / "state"
    wait_for(lambda: running(state) is None, 60, "torch's memory given back")
    assert held(federation, 0) < IDLE and held(federation, None) < IDLE
    assert "1 of 1 admitted are online" in federation.server("status")
    assert "completed" in federation.server("run", *run, "name=again")  # it comes back when it is needed
