"""A run for which nobody said anything of secure aggregation: it is on, and the simulation has its bits."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from real_processes import ROOT, SMALL, Federation, assert_same_bits

from fedmoe_client.store.folder import StateFolder

pytestmark = pytest.mark.deployment
OTHERS = ("privacy.", "num_rounds=", "round_deadline=")
# Nobody of three may be missing, so that a busy machine is no error.
WORDS = [*(word for word in SMALL if not word.startswith(OTHERS)), "round_deadline=280", "rest_seconds=0"]


def logs_of(client: Path) -> str:
    return "".join(file.read_text() for file in (client / "logs").iterdir())


def test_a_deployment_sums_securely_by_itself(federation: Federation) -> None:
    federation.up()
    said = federation.server("run", *WORDS, "num_rounds=2", f"save_dir={federation.runs}", timeout=560)
    sees = "Secure aggregation: the server sees sums over at least 3 clients, and no single update or metric"
    assert sees in said
    deployed = federation.run_dir()
    assert sees in (deployed / "report.md").read_text()
    for client in range(3):
        folder = federation.client_dir(client)
        assert sees in logs_of(folder) and "no secure aggregation" not in logs_of(folder)
        note = StateFolder(folder / "state").note("secure")
        noted = {each["session"][1]: each["phase"] for each in note["sums"]}
        assert noted == {4: "unmasked", 5: "shares"}  # rounds 1 and 2, validation and test; what would come next

    # What the run has said it takes to have its bits in a simulation.
    (line,) = [line for line in said.splitlines() if line.startswith("a simulation of the same bits has ")]
    assert line.startswith(
        "a simulation of the same bits has simulation.engine=ray privacy.sum_bits=20: python sim.py "
    )
    words = shlex.split(line.partition("python sim.py ")[2])
    command = [sys.executable, "sim.py", *words, f"save_dir={federation.root / 'simulated'}", "hosts=1"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (simulated,) = (federation.root / "simulated").iterdir()
    assert_same_bits(deployed, simulated)
