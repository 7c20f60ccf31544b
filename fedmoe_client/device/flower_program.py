"""Flower's program for one message, ``flwr-clientapp``, run in a fork of the resident process.

The fork has everything imported already, talks to the node as Flower's program does and runs the client app, which
hands the work back to the resident process.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import httpcore  # noqa: F401  Flower's HTTP client loads it at its first request
from flwr.app import Context, Error, Message
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.common.constant import APP_DIR, FAB_HASH_TRUNCATION
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

import fedmoe_client.app
import fedmoe_client.device.joining  # what a query needs
import fedmoe_client.device.secure  # and a secure sum
from fedmoe.errors import FailureKind, told_reason
from fedmoe.files import alone, write_file
from fedmoe_client.device.hand_over import PROGRAM
from fedmoe_client.device.resident_call import NODE_PID


def handle_in_fork(words: Sequence[str], node: int, outputs: Sequence[int], to_close: Sequence[int]) -> None:
    """Fork; the child runs ``flwr-clientapp`` and ends, the parent goes on at once.

    words: its command line; node: process id of Flower's that started it; outputs: descriptors for its standard output
    and error; to_close: descriptors that are the parent's alone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        return
    code = 1
    try:
        for number, handle in zip((1, 2), outputs, strict=False):
            os.dup2(handle, number)
        for handle in [*to_close, *outputs]:
            os.close(handle)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.environ[NODE_PID] = str(node)
        sys.argv = [PROGRAM, *words]
        run_clientapp.install_from_fab = _installed_once  # type: ignore[assignment,attr-defined]
        fedmoe_client.app.app = _OfThisVersion(fedmoe_client.app.app)
        flwr_clientapp()
        code = 0
    except SystemExit as end:  # Flower's program ends with it
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never back into the parent's loop


def _installed_once(content: bytes, skip_prompt: bool) -> Path:
    """Install an app unless it is there, while no other message does.

    Flower unpacks the whole app for each message, to find it there, and takes a folder that is half written for a whole
    app. So the folder is compared once, and a note says that it is whole.
    """
    apps, digest = Path(os.environ["FLWR_HOME"]) / APP_DIR, sha256(content).hexdigest()
    note = apps / f"{digest}.installed"
    with alone(apps.with_name("apps.lock")):
        if note.exists() and (known := apps / note.read_text(encoding="utf-8")).is_dir():
            return known
        for found in apps.glob(f"*.{digest[:FAB_HASH_TRUNCATION]}"):
            if not _whole(found, content):
                shutil.rmtree(found)
        folder = install_from_fab(content, skip_prompt=skip_prompt)
        write_file(note, folder.name.encode())
        return folder


def _whole(folder: Path, content: bytes) -> bool:
    """Return whether a folder has all files of an app, by their sizes."""
    with ZipFile(BytesIO(content)) as archive:
        files = {each.filename: each.file_size for each in archive.infolist() if not each.is_dir()}
    own = {folder / name: size for name, size in files.items() if not name.startswith(".info/")}
    return all(path.is_file() and path.stat().st_size == size for path, size in own.items())


class _OfThisVersion(ClientApp):
    """The client app; where Flower has installed another version of it than the one in memory, that version."""

    def __init__(self, app: ClientApp) -> None:
        super().__init__()
        self._app = app
        self._known = set(sys.path)

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle one message."""
        app = self._app
        try:
            for folder in sys.path:
                if folder not in self._known and (Path(folder) / "fedmoe_client" / "app.py").is_file():
                    app = _imported_afresh(Path(folder))
            return app(message, context)
        except Exception as error:  # Flower would send its text
            traceback.print_exc()
            return Message(Error(FailureKind.RAISED, told_reason(error)), reply_to=message)


def _imported_afresh(folder: Path) -> ClientApp:
    """Import the client app of a folder in place of what is in memory."""
    names = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    app: ClientApp = importlib.import_module("fedmoe_client.app").app
    return app
