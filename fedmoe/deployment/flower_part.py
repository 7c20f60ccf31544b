"""Starts a program of Flower's as a part that can be watched: ``python -m fedmoe.deployment.flower_part PROGRAM``.

Flower 1.39 as it is leaves eleven things open, which are mended here and in ``flower_link``, and nowhere else:

* its database waits 5 s for a lock; beyond that a request fails, and with it whoever asked. Here it waits 60 s.
* where the main thread of a program ends by an exception, other threads keep the process alive. Here it ends.
* its control port takes commands from anyone who trusts the certificate. Here a command carries a secret.
* its server and nodes start the process of a task again when it has not begun within 30 s, and again, so that a machine
  that was too busy for the first is given a dozen more. Here it has 3 minutes, and a node may be silent for 2.
* its node looks for replies only after it has received a message, and may send a killed run's in place of the one that
  is waited for, which then lies there until something else comes. Here it is sent.
* its node looks for a message every 3 s, and asks the server in vain most times; one that comes while the server still
  gets the message from its app waits another second. Here the server answers when there is a whole message.
* its server hands a reply to the app before all of it has come, and the app waits for the rest: a client that vanishes
  while it sends keeps the round for 3 minutes, whatever its deadline. Here a reply is handed over when it is whole.
* its node looks for its own app's reply every half second, which each question of a secure sum pays anew. Here it
  looks five times as often.
* its superexec asks its node or server for a task every second, which costs more than most messages, and a message
  waits for it. Here a node tells its superexec that there is one.
* its server writes to the database for each object that is fetched, to count bytes and to end tasks that are silent, so
  everybody waits for everybody. Here it does both once a second.
* its server refuses a node whose clock is 5 s ahead, and does not say so. Here 5 minutes are allowed either way.
"""

from __future__ import annotations

import hmac
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedmoe.deployment.flower_link import Post, do_chores_seldom, forgive_clocks, hold_looks
from fedmoe.errors import FedMoEError

LINE = "1.39."  # of Flower's releases: the last one whose nodes speak gRPC
PROGRAMS = {
    "flower-superlink": "flwr.superlink.cli:flower_superlink",
    "flower-supernode": "flwr.supernode.cli:flower_supernode",
    "flower-superexec": "flwr.supercore.cli:flower_superexec",
    "flwr": "flwr.cli.app:app",
}
LOCK_SECONDS = 60  # that a database waits for its lock
BEAT_SECONDS = 2.0
BEGIN_SECONDS = 180.0  # that the process of a task has to begin
TASK_SECONDS = 90.0  # without a heartbeat, after which a task has failed
NODE_HEARTBEATS = 4  # of 30 s each, after which a node that sends none is taken for gone
FIRST_LOOK = 0.25  # seconds after a message until a node looks for the next one; then twice as long each time
NEWS = "message.came"  # beside the beats: a node touches it after a message, and its superexec looks at it
GLANCE_SECONDS = 0.05  # between two looks
BEAT = "FEDMOE_BEAT"  # the file that a part touches for as long as its main thread lives
CONTROL_SECRET = "FEDMOE_CONTROL_SECRET"  # the file of the control port's secret; none: it is open


def require_flower() -> None:
    """Raise FedMoEError unless Flower is of the line that this module mends; simulations run with later ones too."""
    if not (found := version("flwr")).startswith(LINE):
        raise FedMoEError(f"real clients need Flower {LINE}x, and {found} is installed: pip install 'fedmoe[deploy]'")


def part_command(program: str, *words: str) -> list[str]:
    """Return the command that starts one of ``PROGRAMS`` as a part. Raises FedMoEError as ``require_flower`` does."""
    require_flower()
    return [sys.executable, "-P", "-m", "fedmoe.deployment.flower_part", program, *words]


def main(words: Sequence[str]) -> None:
    """Run a program of Flower's; the process ends with its main thread."""
    program = words[0]
    sys.argv = list(words)
    status = 1
    try:
        _wait_for_locks()
        if program in ("flower-superlink", "flower-supernode"):
            give_time()
        if program == "flower-superlink":
            forgive_clocks()
            do_chores_seldom()
            hold_looks(Post())
        if program == "flower-supernode":
            send_late_replies()
            look_sooner(_news().touch)
        if program == "flower-superexec":
            wait_for_news(_news())
        if CONTROL_SECRET in os.environ:
            _keep_control(program, Path(os.environ[CONTROL_SECRET]).read_text(encoding="ascii").strip())
        if BEAT in os.environ:
            threading.Thread(target=_beat, args=(Path(os.environ[BEAT]),), daemon=True).start()
        module, _, name = PROGRAMS[program].partition(":")
        getattr(importlib.import_module(module), name)()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # no thread of a server outlives the part's work


def _beat(file: Path) -> None:
    while threading.main_thread().is_alive():
        file.touch(mode=0o600)
        time.sleep(BEAT_SECONDS)


def _wait_for_locks() -> None:
    """Let every SQLite database of this process wait longer for a lock."""
    store = importlib.import_module("flwr.supercore.sql_mixin")
    waits = {**dict(store.SQLITE_PRAGMAS), "busy_timeout": str(1000 * LOCK_SECONDS)}
    store.SQLITE_PRAGMAS = tuple(waits.items())  # type: ignore[attr-defined]


def give_time() -> None:
    """Let the process of a task begin late, and a task or node be silent for longer, before it is given up."""
    for store in ("in_memory_corestate", "sql_corestate"):
        module: Any = importlib.import_module(f"flwr.supercore.corestate.{store}")
        # A task that was claimed has one such interval to begin, and then as many as its patience between heartbeats.
        module.HEARTBEAT_DEFAULT_INTERVAL = BEGIN_SECONDS
        module.HEARTBEAT_PATIENCE = TASK_SECONDS / BEGIN_SECONDS
    nodes: Any = importlib.import_module("flwr.server.superlink.linkstate.sql_linkstate")
    nodes.HEARTBEAT_PATIENCE = NODE_HEARTBEATS


def send_late_replies() -> None:
    """Let a node send whatever reply is there, also where no message came just before."""
    node: Any = importlib.import_module("flwr.supernode.start_client_internal")
    receive = node._pull_and_store_message

    def receive_or_look(*, state: Any, **others: Any) -> int | None:
        run: int | None = receive(state=state, **others)
        return 0 if run is None and _holds_reply(state) else run  # of the number it only matters that there is one

    node._pull_and_store_message = receive_or_look


def _news() -> Path:
    return Path(os.environ[BEAT]).with_name(NEWS)


def look_sooner(tell: Callable[[], object]) -> None:
    """Let a node look for the next message soon after one, and for the reply to one at once; ``tell`` of each."""
    node: Any = importlib.import_module("flwr.supernode.start_client_internal")
    receive, waits = node._pull_and_store_message, _Waits()

    def receive_and_note(**all_of_it: Any) -> int | None:
        begun = time.monotonic()
        run: int | None = receive(**all_of_it)
        waited = time.monotonic() - begun > FIRST_LOOK  # at the server, which holds a look for as long as it may
        waits.empty = 0 if run is not None or waited else waits.empty + 1
        if run is not None:
            tell()
        return run

    node._pull_and_store_message, node.time = receive_and_note, waits


class _Waits:
    """Stands for the module ``time`` where Flower's node sleeps. empty: looks without a message since the last one."""

    def __init__(self) -> None:
        self.empty = 0

    def sleep(self, seconds: float) -> None:
        """Sleep for as long as there is something to wait for."""
        reply = seconds < 1.0  # of the node's own app; else a message of the server's
        time.sleep(seconds / 5 if reply else min(seconds, FIRST_LOOK * 2.0 ** min(max(self.empty - 1, 0), 10)))


def wait_for_news(news: Path) -> None:
    """Let a superexec ask for a task as soon as a file is touched; where it is not, as often as Flower has it."""
    superexec: Any = importlib.import_module("flwr.supercore.superexec.run_superexec")
    superexec.time = _News(news)


class _News:
    """Stands for the module ``time`` where Flower's superexec sleeps."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = self._touched()

    def sleep(self, seconds: float) -> None:
        """Sleep for so long, or until there is news."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self._touched() == self._known:
            time.sleep(min(GLANCE_SECONDS, left))
        self._known = self._touched()

    def _touched(self) -> int:
        try:
            return self._file.stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def _holds_reply(state: Any) -> bool:
    """Whether a node's state has a reply that was not sent yet."""
    with state.lock_msg_store:
        entries = list(state.msg_store.values())
    return any(not entry.is_retrieved and entry.message.metadata.reply_to_message_id for entry in entries)


def _keep_control(program: str, secret: str) -> None:
    """Ask for a secret on the control port, or hand it over there."""
    from flwr.common.constant import ACCESS_TOKEN_KEY

    if program == "flower-superlink":
        from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin

        superlink = importlib.import_module("flwr.superlink.cli.flower_superlink")

        class BySecret(NoOpControlAuthnPlugin):
            """Lets in whoever knows the secret, as the one account that there is."""

            def validate_tokens_in_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[bool, Any]:
                given = str(dict(metadata).get(ACCESS_TOKEN_KEY, ""))
                known = hmac.compare_digest(given.encode(), secret.encode())
                return super().validate_tokens_in_metadata(metadata) if known else (False, None)

        superlink.load_control_authn_plugin = BySecret  # type: ignore[attr-defined]
    elif program == "flwr":
        from flwr.cli import auth_plugin

        class WithSecret(auth_plugin.NoOpCliAuthPlugin):
            """Hands the secret over."""

            def write_tokens_to_metadata(
                self, metadata: Sequence[tuple[str, str | bytes]]
            ) -> Sequence[tuple[str, str | bytes]]:
                return [*metadata, (ACCESS_TOKEN_KEY, secret)]

        auth_plugin.NoOpCliAuthPlugin = WithSecret  # type: ignore[misc]


if __name__ == "__main__":
    main(sys.argv[1:])
