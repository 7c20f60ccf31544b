"""A node's resident process: keeps torch, the model and the data loaded, and carries out one message after the other.

``python -m fedmoe_client.device.resident STATE_DIR --watch PID`` is started by the client app. It ends
when the process that it watches, Flower's on this node, is gone, when nobody has called for as long as the latest
caller said, so that an idle client has no torch in memory, and when it is called by another version of the code.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import IO, Any

import psutil

from fedmoe.deployment.logs import log_about
from fedmoe.deployment.processes import runs
from fedmoe.errors import FedMoEError, TellableError, reason_of
from fedmoe.wire import pack
from fedmoe_client.device.node import KEEP_SECONDS, node_from
from fedmoe_client.device.resident_call import LOCK, ROOT, SOCKET, receive, send

LOOK_SECONDS = 0.5  # between two looks whether the watched process has ended
SLOW_SECONDS = 60.0  # a caller that says nothing for so long is gone


class Resident:
    """Answers the calls of one node."""

    def __init__(self, listener: socket.socket, lock: int, watched: int, idle_seconds: float = KEEP_SECONDS) -> None:
        """lock: the descriptor that holds the folder's lock; watched: id of the process to end with."""
        self._listener = listener
        self._lock = lock
        self._watched = _process(watched)
        self._idle_seconds = idle_seconds

    def serve(self) -> None:
        """Answer calls until there is a reason to end."""
        import fedmoe_client.device.flower_program
        import fedmoe_client.device.task  # noqa: F401  torch and the rest, while the first caller waits

        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks end by themselves

        deadline = time.monotonic() + self._idle_seconds
        while time.monotonic() < deadline:
            if not self._called():
                if not self._wanted():
                    return
                continue
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(SLOW_SECONDS)
                if not self._answer(connection):
                    return
            deadline = time.monotonic() + self._idle_seconds

    def _wanted(self) -> bool:
        """Whether the watched process still runs: without it no reply gets anywhere."""
        return self._watched is not None and runs(self._watched)

    def _called(self) -> bool:
        return bool(select.select([self._listener], [], [], min(LOOK_SECONDS, self._idle_seconds))[0])

    def _answer(self, connection: socket.socket) -> bool:
        """Answer one call; return whether to go on."""
        descriptors: list[int] = []
        try:
            request, blobs = receive(connection, descriptors)
            if request.get("root", str(ROOT)) != str(ROOT):
                return False  # without an answer: the caller starts its own version
            if request["do"] == "stop":
                send(connection, {})
                return False
            if "watch" in request:
                self._watched = _process(request["watch"])
            self._idle_seconds = request.get("keep", self._idle_seconds)
            if request["do"] == "clientapp":
                send(connection, {})
                self._fork(request, connection, descriptors)
                return True
            answer, found = _attempt(request, blobs, self._wanted)
            if request["do"] != "prepare":  # of which the caller does not wait for the end
                send(connection, answer, found)
        except OSError as error:  # the caller is gone; the next one is another
            print(f"a caller went away: {error}", file=sys.stderr)
        finally:
            for handle in descriptors:
                os.close(handle)
        return True

    def _fork(self, request: dict[str, Any], connection: socket.socket, outputs: list[int]) -> None:
        from fedmoe_client.device.flower_program import handle_in_fork

        own = [connection.fileno(), self._listener.fileno(), self._lock]
        handle_in_fork(request["words"], request["watch"], outputs, own)


def _process(pid: int) -> psutil.Process | None:
    """Return a process that is not ours, None if it has ended."""
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _attempt(
    request: dict[str, Any], blobs: list[bytes], wanted: Callable[[], bool]
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the answer to a request, or what went wrong."""
    try:
        return _carry_out(request, blobs, wanted)
    except Exception as error:  # whatever a message runs into is the message's failure; this process stays
        if not isinstance(error, FedMoEError):
            logging.getLogger(__name__).exception("a message failed")
        return {"error": reason_of(error), "tellable": isinstance(error, TellableError)}, []


def _carry_out(
    request: dict[str, Any], blobs: list[bytes], wanted: Callable[[], bool]
) -> tuple[dict[str, Any], list[bytes]]:
    from fedmoe_client.device.task import Task, perform
    from fedmoe_client.learning.client import workbench

    if request["do"] == "prepare":
        workbench(request["run_config"], None if request["catalogue"] is None else Path(request["catalogue"]))
        return {}, []
    if not wanted():
        raise FedMoEError("the node that asked has ended")
    log_about(**request["about"])
    kind, config, node = request["kind"], request["config"], node_from(request["node"])
    extra = pickle.loads(blobs[1])
    task = Task(kind, blobs[0], config, node, request["run_config"], request["run"], extra, wanted)
    arrays, metrics, records = perform(task)
    return {"metrics": metrics}, [pickle.dumps(records), *([] if arrays is None else [pack(arrays)])]


@contextmanager
def _sole(state_dir: Path) -> Iterator[int | None]:
    """Hold the folder's lock with this process's id in it; yield its descriptor, None if another process has it."""
    with open(os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
        if not _locked(file):
            yield None
            return
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        yield file.fileno()


def _locked(file: IO[bytes]) -> bool:
    """Take the lock, or give up after a second: whoever asks whether there is a process holds it for a moment."""
    for _ in range(50):
        try:
            flock(file, LOCK_EX | LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
    return False


def main(words: list[str]) -> int:
    """Serve one state folder until there is a reason to end; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fedmoe_client.device.resident", description=__doc__)
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--watch", type=int, required=True, metavar="PID", help="end when this process does")
    parser.add_argument("--idle", type=float, default=KEEP_SECONDS, help="seconds without a call, after which it ends")
    given = parser.parse_args(words)
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # in good order, the socket removed
    state_dir = given.state_dir.absolute()
    with _sole(state_dir) as lock, socket.socket(socket.AF_UNIX) as listener:
        if lock is None:
            return 0
        _bind(listener, state_dir)
        try:
            Resident(listener, lock, given.watch, given.idle).serve()
        finally:
            (state_dir / SOCKET).unlink(missing_ok=True)
    return 0


def _bind(listener: socket.socket, state_dir: Path) -> None:
    """Listen in the folder; from inside, since a socket's address must be short."""
    (state_dir / SOCKET).unlink(missing_ok=True)
    before = Path.cwd()
    os.chdir(state_dir)
    listener.bind(SOCKET)
    listener.listen()
    os.chdir(before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
