"""A node's resident process, seen from outside: call it, start it where there is none, stop it. No torch here.

Flower starts a process for each message, and importing torch and building the model take far longer than training on
one user's history. So one process a node stays, with both loaded, and the client app hands it the messages over a
socket in the client's state folder, which only its owner can reach. A frame on that socket is the length of a JSON
(8 bytes, little-endian), the JSON with ``sizes``, and blobs of these sizes.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.errors import FedMoEError, TellableError
from fedmoe.wire import NamedArrays, unpack
from fedmoe_client.device.node import KEEP_SECONDS, Value
from fedmoe_client.store.folder import StateFolder

if TYPE_CHECKING:  # the commands that only ask do not load Flower
    from flwr.app import RecordDict

SOCKET, LOCK, LOG = "resident.sock", "resident.pid", "resident.log"
LONGEST_ADDRESS = 100  # bytes, of at most 104 to 108 that systems allow
START_SECONDS = 120.0
STOP_SECONDS = 5.0
NODE_PID = "FEDMOE_NODE_PID"  # set where the process that started the client app is not its parent
ROOT = Path(__file__).parents[2]
LENGTH = 8


def perform_there(
    kind: str,
    arrays: bytes,
    config: Mapping[str, Any],
    node: Mapping[str, Value],
    run_config: Mapping[str, Value],
    run: str,
    extra: RecordDict | None = None,
    about: Mapping[str, Any] | None = None,
) -> tuple[NamedArrays | None, dict[str, Any], RecordDict]:
    """Have the resident process carry out a message; arguments and result as in ``fedmoe_client.device.task``.

    about: see ``fedmoe.deployment.logs``.

    Records travel pickled: both ends are the same program of the same owner, and what is pickled has been read already.
    """
    request = {
        "do": "perform",
        "kind": kind,
        "config": dict(config),
        "node": dict(node),
        "run_config": dict(run_config),
        "run": run,
        "about": dict(about or {}),
        "keep": node.get("keep-torch", KEEP_SECONDS),
    }
    answer, found = call(Path(str(node["state-dir"])), request, [arrays, pickle.dumps(extra)])
    return unpack(found[1]) if len(found) > 1 else None, answer["metrics"], pickle.loads(found[0])


def prepare(state_dir: Path, catalogue: Path | None, run_config: Mapping[str, Value], keep: int) -> None:
    """Let the resident process load what a run needs, and do not wait for it."""
    request = {
        "do": "prepare",
        "catalogue": None if catalogue is None else str(catalogue),
        "run_config": dict(run_config),
        "keep": keep,
        **_caller(),
    }
    with _connected(state_dir) as connection:
        send(connection, request)


def call(
    state_dir: Path, request: Mapping[str, Any], blobs: Sequence[bytes] = ()
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the resident process's answer; start it if need be.

    A process that ends before it answers, because it is another version's or its node is gone, is replaced once: a
    message that is carried out twice starts from the same private parameters both times. Where the node itself is
    gone, nobody waits for the answer, and the next process keeps nothing of it.

    Raises FedMoEError with one line that says what went wrong there.
    """
    try:
        answer, found = _asked(state_dir, request, blobs)
    except ConnectionError:
        _gone(state_dir, running(state_dir), STOP_SECONDS)
        try:
            answer, found = _asked(state_dir, request, blobs)
        except ConnectionError as error:
            raise FedMoEError(f"the client's resident process ended: {_log_end(state_dir)}") from error
    if "error" in answer:
        raise (TellableError if answer.get("tellable") else FedMoEError)(answer["error"])
    return answer, found


def _asked(state_dir: Path, request: Mapping[str, Any], blobs: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    with _connected(state_dir) as connection:
        send(connection, {**request, **_caller()}, blobs)
        return receive(connection)


def ask(state_dir: Path, request: Mapping[str, Any], patience: float) -> dict[str, Any] | None:
    """Return a running process's answer; None if there is none, or if it has no time within ``patience`` seconds."""
    try:
        with _address(state_dir) as address, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(patience)
            connection.connect(address)
            send(connection, request)
            answer, _ = receive(connection)
    except OSError:  # no such file, refused, timed out, closed
        return None
    return None if "error" in answer else answer


def forget(state_dir: Path) -> list[str]:
    """Erase what is in a state folder and return the files' names; a training that is under way is ended first.

    Raises FedMoEError if the folder does not exist, or another process keeps it busy.
    """
    store = StateFolder.existing(state_dir)
    stop(state_dir)
    with store.lock(seconds=60.0):
        return store.erase()


def stop(state_dir: Path, patience: float = STOP_SECONDS) -> bool:
    """End the resident process of a state folder, after ``patience`` seconds by force; return whether there was one."""
    if (pid := running(state_dir)) is None:
        return False
    ask(state_dir, {"do": "stop"}, patience)
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None and running(state_dir) == pid:
            os.kill(pid, number)
        if _gone(state_dir, pid, patience):
            return True
    raise FedMoEError(f"the client's resident process {pid} cannot be ended")


def _gone(state_dir: Path, pid: int | None, patience: float) -> bool:
    """Wait until a resident process has ended; return whether it has."""
    deadline = time.monotonic() + patience
    while pid is not None and running(state_dir) == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def running(state_dir: Path) -> int | None:
    """Return the id of the resident process, None if there is none: it holds a lock as long as it lives."""
    try:
        with (state_dir / LOCK).open("r+b") as file:
            try:
                flock(file, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


@contextmanager
def _connected(state_dir: Path) -> Iterator[socket.socket]:
    """Yield a connection to the resident process, which is started if there is none."""
    process: subprocess.Popen[bytes] | None = None
    deadline = time.monotonic() + START_SECONDS
    while True:
        with _address(state_dir) as address, socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(address)
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            else:
                yield connection
                return
        if process is None:
            process = start(state_dir)
        # Exit status 0: another one was there first, and is about to listen.
        if process.poll() or time.monotonic() > deadline:
            raise FedMoEError(f"the client's resident process does not start: {_log_end(state_dir)}")
        time.sleep(0.02)


def start(state_dir: Path) -> subprocess.Popen[bytes]:
    """Start the resident process of a state folder. It ends when the process that started this one does."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])}
    handle = os.open(state_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return subprocess.Popen(
            # -P: of modules only those on the path, not those of the folder that the node happens to run in.
            [sys.executable, "-P", "-m", "fedmoe_client.device.resident", str(state_dir), "--watch", str(_node_pid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            start_new_session=True,  # a Ctrl-C at the node's terminal is the node's to handle
        )
    finally:
        os.close(handle)


@contextmanager
def _address(state_dir: Path) -> Iterator[str]:
    """Yield the address of the socket: the system limits its length, but Linux knows a short name for any folder."""
    path = str(state_dir / SOCKET)
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield path
        return
    if not Path("/proc/self/fd").is_dir():
        raise FedMoEError(f"state folder {state_dir}: its path is too long for a socket, choose a shorter one")
    try:
        handle = os.open(state_dir, os.O_RDONLY)
    except FileNotFoundError:
        yield path[:LONGEST_ADDRESS]  # the folder does not exist, and neither does this
        return
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)


def _caller() -> dict[str, Any]:
    """Whose process to watch, and which code to run."""
    return {"watch": _node_pid(), "root": str(ROOT)}


def _node_pid() -> int:
    """Return the id of Flower's process that started this one."""
    return int(os.environ.get(NODE_PID) or os.getppid())


def _log_end(state_dir: Path) -> str:
    log = state_dir / LOG
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{lines[-1] if lines else 'it said nothing'} (see {log})"


def send(connection: socket.socket, content: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Send one frame."""
    head = json.dumps({**content, "sizes": [len(blob) for blob in blobs]}).encode()
    connection.sendall(len(head).to_bytes(LENGTH, "little") + head)
    for blob in blobs:
        connection.sendall(blob)


def receive(connection: socket.socket, descriptors: list[int] | None = None) -> tuple[dict[str, Any], list[bytes]]:
    """Return one frame. Raises ConnectionError if the other side closed before its end.

    descriptors: a list to which the file descriptors are added that came with the frame; the caller closes them.
    """
    begin = b""
    if descriptors is not None:
        begin, found, _, _ = socket.recv_fds(connection, LENGTH, 2)
        descriptors += found
        if not begin:
            raise ConnectionError("the other side closed the connection")
    length = int.from_bytes(begin + _exactly(connection, LENGTH - len(begin)), "little")
    content: dict[str, Any] = json.loads(_exactly(connection, length))
    return content, [_exactly(connection, size) for size in content.pop("sizes")]


def _exactly(connection: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = connection.recv_into(view[got:])
        if not count:
            raise ConnectionError("the other side closed the connection")
        got += count
    return bytes(buffer)
