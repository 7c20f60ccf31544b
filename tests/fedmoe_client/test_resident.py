"""The resident process: the same answers, in a fraction of the time, and never one too many."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import psutil
import pytest
from deployed_client import SHARED, USER, Deployment
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmoe.errors import FedMoEError
from fedmoe.wire import packed_bytes
from fedmoe_client.app import app
from fedmoe_client.device.resident_call import LOG, SOCKET, ask, call, forget, perform_there, running, stop


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One client for all tests, since its resident process takes seconds to start."""
    made = Deployment(tmp_path_factory.mktemp("resident"))
    yield made
    stop(made.state_dir)


@pytest.fixture
def resident(client: Deployment) -> Deployment:
    """A client that has trained, and whose resident process is up."""
    if running(client.state_dir) is None:
        train_there(client, 1)
    return client


def train_there(deployment: Deployment, number: int, **node: object) -> dict[str, bytes]:
    config = {"server-round": number, "shared": SHARED}
    sent, place = packed_bytes(deployment.arrays()), deployment.node(warm=True, **node)
    arrays, metrics, _ = perform_there("train", sent, config, place, deployment.run_config, "run")
    assert arrays is not None
    assert metrics["num-examples"] > 0
    return {name: array.tobytes() for name, array in arrays.items()}


def test_it_answers_as_the_plain_app_does_and_stays(resident: Deployment, deployment: Deployment) -> None:
    pid = running(resident.state_dir)
    train_there(resident, 2)
    assert train_there(resident, 1) == deployment.train(1)
    assert running(resident.state_dir) == pid


def test_the_app_uses_it(resident: Deployment) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    config = ConfigRecord({"server-round": 3, "shared": SHARED, "split": "test"})
    message = Message(RecordDict({"arrays": resident.arrays(), "config": config}), 7, "evaluate")
    node = resident.node(warm=None)
    reply = app(message, Context(1, 7, node, RecordDict(), dict(resident.run_config)))
    assert reply.content["metrics"]["num-examples"] == 1


def test_what_goes_wrong_there_is_said_here_and_it_stays(resident: Deployment) -> None:
    pid = running(resident.state_dir)
    with pytest.raises(FedMoEError, match="none.txt: the history cannot be read"):
        train_there(resident, 2, history=str(resident.folder / "none.txt"))
    with pytest.raises(FedMoEError, match="KeyError"):
        call(resident.state_dir, {"do": "perform"})
    assert "KeyError" in (resident.state_dir / LOG).read_text()
    assert running(resident.state_dir) == pid


def test_only_its_owner_can_reach_it(resident: Deployment) -> None:
    assert (resident.state_dir / SOCKET).stat().st_mode & 0o077 == 0
    assert resident.state_dir.stat().st_mode & 0o077 == 0


def test_the_client_app_imports_no_torch() -> None:
    parts = ("app", "device.resident_call", "device.joining", "__main__")
    modules = ", ".join(f"fedmoe_client.{part}" for part in parts)
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def serve(state_dir: Path, watched: int, *words: str) -> subprocess.Popen[bytes]:
    """Start a resident process that loads nothing, for its life and death."""
    code = (
        "import sys, types; sys.modules['fedmoe_client.device.task'] = types.ModuleType('messages');"
        "from fedmoe_client.device.resident import main; sys.exit(main(sys.argv[1:]))"
    )
    state_dir.mkdir(exist_ok=True)
    command = [sys.executable, "-c", code, str(state_dir), "--watch", str(watched), *words]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 30
    while not (state_dir / SOCKET).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_it_ends_with_the_process_that_it_watches(tmp_path: Path) -> None:
    node = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = serve(tmp_path / "state", node.pid)
    assert running(tmp_path / "state") == process.pid
    node.kill()
    node.wait()
    assert process.wait(timeout=60) == 0
    assert running(tmp_path / "state") is None
    assert not (tmp_path / "state" / SOCKET).exists()


def test_it_ends_when_nobody_calls(tmp_path: Path) -> None:
    assert serve(tmp_path / "state", os.getpid(), "--idle", "0.1").wait(timeout=60) == 0


def test_an_idle_client_gives_the_memory_back_and_goes_on_at_the_next_message(deployment: Deployment) -> None:
    first = train_there(deployment, 1, keep_torch=1)
    pid, deadline = running(deployment.state_dir), time.monotonic() + 30
    while running(deployment.state_dir) is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(deployment.state_dir) is None
    assert train_there(deployment, 1) == first  # from the same private parameters, since it is the same round
    assert running(deployment.state_dir) not in (None, pid)
    stop(deployment.state_dir)


def test_it_makes_room_for_another_version_of_the_code(tmp_path: Path) -> None:
    process = serve(tmp_path / "state", os.getpid())
    assert ask(tmp_path / "state", {"do": "prepare", "root": "/another/version"}, 5.0) is None
    assert process.wait(timeout=60) == 0


def test_there_is_never_a_second_one(tmp_path: Path) -> None:
    first = serve(tmp_path / "state", os.getpid())
    second = serve(tmp_path / "state", os.getpid())
    assert second.wait(timeout=20) == 0
    assert running(tmp_path / "state") == first.pid
    assert stop(tmp_path / "state")
    assert first.wait(timeout=10) == 0
    assert not stop(tmp_path / "state")


def test_one_that_does_not_listen_is_ended_by_force(tmp_path: Path) -> None:
    process = serve(tmp_path / "state", os.getpid())
    os.kill(process.pid, 19)  # SIGSTOP
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(stop, tmp_path / "state", 0.3)
        process.wait(timeout=60)
        assert ended.result()


def test_a_path_that_is_too_long_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    state_dir = tmp_path / ("a" * 60) / ("b" * 60) / "state"
    state_dir.parent.mkdir(parents=True)
    process = serve(state_dir, os.getpid())
    assert ask(state_dir, {"do": "stop"}, 60.0) == {}
    assert process.wait(timeout=60) == 0


def test_one_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(FedMoEError, match="does not start"):
        call(tmp_path, {"do": "stop"})


def test_a_train_message_takes_at_most_half_of_the_plain_apps_time(resident: Deployment) -> None:
    """Each in a process of its own, as Flower starts one for each message: processor time, the resident's too."""
    message = resident.folder / "message"
    message.write_bytes(pickle.dumps((resident.arrays(), SHARED, resident.run_config)))
    code = (
        "import pickle, sys\n"
        "from flwr.app import ConfigRecord, Context, Message, RecordDict\n"
        "from flwr.supercore.task_identity import TaskIdentity\n"
        "from fedmoe_client.app import app\n"
        "TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1\n"
        f"arrays, shared, run_config = pickle.load(open({str(message)!r}, 'rb'))\n"
        "config = ConfigRecord({'server-round': 4, 'shared': shared})\n"
        "content = RecordDict({'arrays': arrays, 'config': config})\n"
        "node = eval(sys.argv[1])\n"
        "reply = app(Message(content, 7, 'train'), Context(1, 7, node, RecordDict(), run_config))\n"
        "assert reply.content['metrics']['num-examples'] > 0\n"
    )

    def spent() -> float:
        children, there = getrusage(RUSAGE_CHILDREN), psutil.Process(running(resident.state_dir)).cpu_times()
        return children.ru_utime + children.ru_stime + there.user + there.system

    def seconds(**node: object) -> float:
        before = spent()
        subprocess.run([sys.executable, "-c", code, repr(resident.node(**node))], check=True, timeout=120)
        return spent() - before

    plain = seconds(warm=False, state_dir=str(resident.folder / "plain"))
    warm = seconds(warm=True)
    assert warm < plain / 2, f"warm {warm:.2f} s, plain {plain:.2f} s"


def test_forgetting_ends_it_and_erases_everything(resident: Deployment) -> None:
    assert running(resident.state_dir) is not None
    erased = forget(resident.state_dir)
    assert any(name.startswith("private-") for name in erased)
    assert running(resident.state_dir) is None
    assert [path.name for path in resident.state_dir.iterdir()] == ["lock"]
    assert resident.history.is_file()
    assert resident.train(1)  # and the client can take part again
    assert (resident.state_dir / "client.json").read_text() == f'{{"number": {USER}}}'
