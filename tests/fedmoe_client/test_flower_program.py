"""A message's way into a fork of the resident process, and past it where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from fedmoe_client.device.hand_over import PROGRAM, install_program
from fedmoe_client.device.resident_call import SOCKET, running, stop

# A resident process whose fork does not talk to a node, but says what it was started with.
RESIDENT = """
import os, sys, types
sys.modules['fedmoe_client.device.task'] = types.ModuleType('messages')
import fedmoe_client.device.flower_program
def program():
    print('fork of', os.getppid(), 'node', os.environ['FEDMOE_NODE_PID'], *sys.argv, flush=True)
    print('complaint', file=sys.stderr)
    sys.exit(3)
fedmoe_client.device.flower_program.flwr_clientapp = program
from fedmoe_client.device.resident import main
sys.exit(main(sys.argv[1:]))
"""

ANOTHER_VERSION = """
import sys
from flwr.clientapp import ClientApp
import fedmoe_client.app, fedmoe_client.device.flower_program as forked, fedmoe.errors
class Mine(ClientApp):
    def __call__(self, message, context): return 'mine'
app = forked._OfThisVersion(Mine())
sys.path.insert(0, '/nowhere')
print(app(None, None))
sys.path.insert(0, sys.argv[1])
print(app(None, None), 'fedmoe.errors' in sys.modules, 'flwr' in sys.modules)
"""


def launch(programs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(programs / PROGRAM), *words], capture_output=True, text=True, timeout=60, check=False)


def test_a_message_is_handled_in_a_fork_whose_output_goes_to_the_node(tmp_path: Path) -> None:
    state_dir = tmp_path / "a folder's state"
    programs = install_program(state_dir)
    resident = subprocess.Popen([sys.executable, "-c", RESIDENT, str(state_dir), "--watch", str(os.getpid())])
    try:
        deadline = time.monotonic() + 60
        while not (state_dir / SOCKET).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(2):
            done = launch(programs, "--token", "x y")
            assert done.stdout == f"fork of {resident.pid} node {os.getpid()} flwr-clientapp --token x y\n"
            assert done.stderr == "complaint\n"
        assert running(state_dir) == resident.pid
    finally:
        assert stop(state_dir)
    assert resident.wait(timeout=10) == 0


def test_without_a_resident_process_it_is_flowers_own_program(tmp_path: Path) -> None:
    programs = install_program(tmp_path)
    assert (programs / PROGRAM).stat().st_mode & 0o777 == 0o700
    done = launch(programs, "--help")
    assert done.returncode == 0
    assert "Run a Flower ClientApp" in done.stdout


def test_a_fork_runs_the_version_that_flower_has_installed(tmp_path: Path) -> None:
    other = tmp_path / "fedmoe_client"
    other.mkdir()
    (tmp_path / "fedmoe").mkdir()
    (tmp_path / "fedmoe" / "errors.py").write_text("")
    (other / "__init__.py").write_text("")
    (other / "app.py").write_text("app = lambda message, context: 'another'\n")
    done = subprocess.run(
        [sys.executable, "-c", ANOTHER_VERSION, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split("\n")[:2] == ["mine", "another False True"]
