"""Programs are kept running, and ended with everything that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedmoe.deployment import supervisor
from fedmoe.deployment.folder import TAG, Folder
from fedmoe.deployment.keys import make_key_pair
from fedmoe.deployment.ports import free_port, listens, wait_until_closed
from fedmoe.deployment.processes import running_supervisor
from fedmoe.deployment.supervisor import Program, start_in_background, stop
from fedmoe.errors import FedMoEError
from fedmoe.files import read_json

ROOT = Path(__file__).parents[2]
# A program that starts another one, which it loses; and writes down both processes.
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
open(sys.argv[1], "a").write(f"{os.getpid()} {child.pid}\\n")
time.sleep(100)
"""
KEEPER = """
import os, sys
from pathlib import Path
from fedmoe.deployment.folder import Folder
from fedmoe.deployment.keys import make_key_pair
from fedmoe.deployment.ports import free_port, listens
from fedmoe.deployment.supervisor import Program, Supervisor
folder = Folder(Path(sys.argv[1]))
folder.make()
crashed = lambda: Path(sys.argv[1], "crashed").write_text("yes")
script = Path(sys.argv[1], "parent.py").read_text()
program = Program("parent", [sys.executable, "-c", script, sys.argv[1] + "/pids"], crashed)
Supervisor(folder, [program], folder.environment(os.environ)).run()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "keeper")
    made.make()
    (made.path / "parent.py").write_text(PARENT)
    yield made
    stop(made)


def keep(folder: Folder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(folder.path)],
        cwd=ROOT,
        env=folder.environment(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def started(folder: Folder, count: int) -> list[list[int]]:
    """Wait until the program was started so many times; return the process ids of it and its child, for each."""
    path = folder.path / "pids"
    wait_for(lambda: path.exists() and len(path.read_text().splitlines()) >= count)
    return [[int(word) for word in line.split()] for line in path.read_text().splitlines()]


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_program_is_started_again_and_down_leaves_nothing(folder: Folder) -> None:
    keeper = keep(folder)
    (first,) = started(folder, 1)
    os.kill(first[0], signal.SIGKILL)
    second = started(folder, 2)[1]
    assert (folder.path / "crashed").exists()
    wait_for(lambda: read_json(folder.supervisor)["programs"]["parent"]["restarts"] == 1)
    found = running_supervisor(folder)
    assert found is not None
    assert found.pid == keeper.pid
    assert stop(folder)
    said, _ = keeper.communicate(timeout=20)
    assert "killed by signal 9; starts again" in said
    assert not any(alive(pid) for pid in [*first, *second])  # the first one's lost child as well
    assert not folder.supervisor.exists()
    assert not stop(folder)


def test_what_a_killed_supervisor_leaves_is_ended(folder: Folder) -> None:
    keeper = keep(folder)
    (first,) = started(folder, 1)
    keeper.kill()
    keeper.communicate()
    assert all(alive(pid) for pid in first)
    assert running_supervisor(folder) is None
    again = keep(folder)  # the next 'up' clears the table
    second = started(folder, 2)[1]
    assert not any(alive(pid) for pid in first)
    again.kill()
    again.communicate()
    assert stop(folder)
    assert not any(alive(pid) for pid in second)


def test_a_folder_has_one_supervisor(folder: Folder) -> None:
    keep_first = keep(folder)
    started(folder, 1)
    second = keep(folder)
    said, _ = second.communicate(timeout=20)
    assert "is in use by another 'up'" in said
    assert keep_first.poll() is None
    stop(folder)
    keep_first.communicate(timeout=20)


def test_processes_of_other_folders_are_left_alone(folder: Folder, tmp_path: Path) -> None:
    environment = {**os.environ, TAG: str(tmp_path / "other")}
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], env=environment)
    assert not stop(folder)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_long_log_makes_way(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 1000)
    script = "import time\nwhile True:\n    print('x' * 99, flush=True); time.sleep(0.01)"
    program = Program("talker", [sys.executable, "-c", script])
    kept = supervisor.Supervisor(folder, [program], folder.environment(os.environ))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this is not the main thread
    thread = threading.Thread(target=kept.run)
    thread.start()
    wait_for(lambda: (folder.logs / "talker.log.1").exists())
    kept.request_stop()
    thread.join(20)
    assert (folder.logs / "talker.log").stat().st_size < 100_000


def test_a_background_start_waits_until_it_is_ready_or_says_why_not(folder: Folder) -> None:
    with pytest.raises(FedMoEError, match="it ended at once"):
        start_in_background(folder, "this_module_is_not_there", [], lambda: False)
    with pytest.raises(FedMoEError, match="^--history missing.txt does not exist"):
        make_key_pair(folder.path / "client")
        words = ["up", "--server", "localhost:1", "--history", "missing.txt", "--dir", str(folder.path)]
        start_in_background(folder, "fedmoe_client", words, lambda: False)
    port = free_port()
    words = [str(port), "--bind", "127.0.0.1"]
    start_in_background(folder, "http.server", words, lambda: listens("127.0.0.1", port))
    assert stop(folder)
    assert wait_until_closed("127.0.0.1", port, 5.0)  # the last thread of an ended process may still be on its way out


def test_a_program_that_hangs_is_started_again_with_what_serves_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SILENT", 1.0)
    alive = "import os, pathlib, time\nbeat = pathlib.Path(os.environ['FEDMOE_BEAT'])\n"
    hangs = Program("hangs", [sys.executable, "-c", alive + "beat.touch(); time.sleep(100)"], beats=True)
    works = Program("works", [sys.executable, "-c", alive + "while True: beat.touch(); time.sleep(0.1)"], beats=True)
    serves = Program("serves", [sys.executable, "-c", "import time; time.sleep(100)"], needs="hangs")
    kept = supervisor.Supervisor(folder, [hangs, works, serves], folder.environment(os.environ))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this is not the main thread
    thread = threading.Thread(target=kept.run)
    thread.start()
    restarts = lambda: {name: each["restarts"] for name, each in read_json(folder.supervisor)["programs"].items()}  # noqa: E731
    wait_for(lambda: folder.supervisor.exists() and min(restarts()["hangs"], restarts()["serves"]) >= 1)
    assert restarts()["works"] == 0
    kept.request_stop()
    thread.join(20)
