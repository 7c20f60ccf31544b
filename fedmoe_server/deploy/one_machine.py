"""A whole federation on one machine: a server and clients in a folder, by the commands that a person would type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedmoe.deployment.ports import free_port
from fedmoe.errors import FedMoEError

COMMAND_SECONDS = 900.0
AT_ONCE = 4  # clients that are started at a time


class OneMachine:
    """A server and clients of one machine, which are reached on loopback alone.

    Attributes:
        root: the folder that holds everything: ``server``, ``client-N``, ``catalogue``, ``runs``.
        server_dir, catalogue, runs: parts of it.
    """

    def __init__(self, root: Path, words: Sequence[str]) -> None:
        """words: the settings of the catalogue and of all runs, as of ``sim.py``."""
        self.root = root
        self.server_dir, self.catalogue, self.runs = root / "server", root / "catalogue", root / "runs"
        self._words = list(words)
        ports: set[int] = set()
        while len(ports) < 2:
            ports.add(free_port())
        self._address, self._control = (f"127.0.0.1:{port}" for port in ports)

    def client_dir(self, client: int) -> Path:
        """Return a client's folder."""
        return self.root / f"client-{client}"

    def up(self, histories: Mapping[int, Path]) -> None:
        """Start the server and the clients. histories: client id -> its history, a file or a silo's folder."""
        self.server_up()
        self.server("catalogue", *self._words, "--out", self.catalogue)
        for client in histories:
            self.client(client, "enrol", "--client-id", client)
        self.server("admit", *(self.client_dir(client) / "client.pub" for client in histories))
        with ThreadPoolExecutor(AT_ONCE) as starting:
            list(starting.map(self.client_up, histories, histories.values()))

    def server_up(self) -> None:
        """Start the server; return when it is ready."""
        self.server("up", "--address", self._address, "--control", self._control)

    def client_up(self, client: int, history: Path) -> None:
        """Start a client; return when it is connected, or on a busy machine when it goes on trying (status 1)."""
        trust = ("--server", self._address, "--ca", self.server_dir / "ca.crt")
        words = ("up", *trust, "--history", history, "--catalogue", self.catalogue, "--dir", self.client_dir(client))
        self._command("fedmoe_client", *words, well=(0, 1))

    def down(self) -> None:
        """Stop everything that runs, whatever it takes."""
        for folder in sorted(self.root.glob("client-*")):
            self._command("fedmoe_client", "down", "--dir", folder, well=())
        if self.server_dir.exists():
            self._command("fedmoe_server", "down", "--dir", self.server_dir, well=())

    def run_command(self, *words: object) -> list[str]:
        """Return the command that runs the federation with the settings, and those of words on top."""
        own = (*self._words, f"save_dir={self.runs}", *words, "--dir", self.server_dir)
        return [sys.executable, "-m", "fedmoe_server", "run", *map(str, own)]

    def server(self, *words: object) -> str:
        """Carry out a command of the server's; return what it prints. Raises FedMoEError if it fails."""
        return self._command("fedmoe_server", *words, "--dir", self.server_dir)

    def client(self, client: int, *words: object) -> str:
        """Carry out a command of a client's; return what it prints. Raises FedMoEError if it fails."""
        return self._command("fedmoe_client", *words, "--dir", self.client_dir(client))

    def _command(self, module: str, *words: object, well: Sequence[int] = (0,)) -> str:
        command = [sys.executable, "-m", module, *map(str, words)]
        done = subprocess.run(
            command, env=os.environ, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
        if well and done.returncode not in well:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise FedMoEError(f"'python -m {module} {words[0]}' failed: {lines[-1].removeprefix('error: ')}")
        return done.stdout
