"""A client's folder: its key pair, the server's authority, its state, and the node that runs there."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmoe.deployment.flower_part import part_command
from fedmoe.deployment.folder import Folder
from fedmoe.errors import FedMoEError

CONNECTED = re.compile(r"SuperNode ID: (\d+)")
REFUSED = "Failed to initialize the connection to the SuperLink."  # Flower says, and in the next line why
RELEASE_SECONDS = 30.0
NOTICED_SECONDS = 4.0


class ClientFolder(Folder):
    """The places of a client."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.key = path / "client"  # the private key; the public half lies beside it
        self.authority = path / "ca.crt"  # certificate of the authority that the server's certificate comes from
        self.state = path / "state"  # private parameters, memory and the last global model
        self.node_log = self.logs / "supernode.log"

    def trust(self, authority: Path | None) -> None:
        """Keep a copy of the authority's certificate. Raises FedMoEError if there is none."""
        if authority is None and not self.authority.exists():
            raise FedMoEError(f"{self.path} has no ca.crt: give --ca with the file that the server's 'up' has named")
        if authority is None:
            return
        try:
            content = authority.read_bytes()
        except OSError as error:
            raise FedMoEError(
                f"--ca {authority} cannot be read ({error.strerror}): give the server's ca.crt"
            ) from error
        if b"BEGIN CERTIFICATE" not in content:
            raise FedMoEError(f"--ca {authority} is no certificate in PEM: give the server's ca.crt")
        self.authority.write_bytes(content)

    def node_id(self, start: int = 0) -> int | None:
        """Return the node id of the latest connection in the log after byte ``start``, None if there was none."""
        try:
            with self.node_log.open("rb") as log:
                log.seek(start)
                found = CONNECTED.findall(log.read().decode("utf-8", errors="replace"))
        except FileNotFoundError:
            return None
        return int(found[-1]) if found else None

    def refusal(self, start: int = 0) -> str | None:
        """Return why the latest attempt to connect after byte ``start`` of the log failed, None if that is not said."""
        try:
            with self.node_log.open("rb") as log:
                log.seek(start)
                _, found, said = log.read().decode("utf-8", errors="replace").rpartition(REFUSED)
        except FileNotFoundError:
            return None
        return next((line.strip() for line in said.splitlines() if line.strip()), None) if found else None

    def release(self, server: str, environment: Mapping[str, str]) -> None:
        """Tell the server that the node has crashed; where that fails, the server finds out within a minute.

        Returns once the server app has noticed: it asks for replies every three seconds, and a node that is back before
        it asks again would owe it the lost reply until the round's deadline.
        """
        node = self.node_id()
        if node is None:
            return
        command = [sys.executable, "-m", "fedmoe_client.device.release", "--server", server]
        command += ["--ca", str(self.authority), "--key", str(self.key), "--node", str(node)]
        try:
            done = subprocess.run(
                command, env=dict(environment), capture_output=True, timeout=RELEASE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return
        if done.returncode == 0:
            time.sleep(NOTICED_SECONDS)


def node_config(values: Mapping[str, str | int | Path | None]) -> str:
    """Return Flower's ``--node-config`` for some values, without those that are None."""
    words = []
    for key, value in values.items():
        if isinstance(value, Path):
            text = str(value.absolute())
            if '"' in text or "\\" in text:
                raise FedMoEError(f'{value}: a path with " or \\ in it cannot be handed to Flower: rename it')
            words.append(f'{key}="{text}"')
        elif value is not None:
            words.append(f"{key}={value}")
    return " ".join(words)


def supernode_command(folder: ClientFolder, server: str, port: int, config: str, extra: Sequence[str]) -> list[str]:
    """Return the command of the node: gRPC with TLS, and the client's own key.

    port: of this machine, where the node and its client app talk. extra: further options of ``flower-supernode``.
    """
    return part_command(
        "flower-supernode",
        "--grpc-rere",
        *("--superlink", server),
        *("--root-certificates", str(folder.authority.absolute())),
        *("--auth-supernode-private-key", str(folder.key.absolute())),
        *("--node-config", config),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(folder.secret("superexec").absolute())),
        *extra,
    )
