"""A server's folder: its addresses, its certificates, the clients it has admitted, and Flower's command line on it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedmoe.deployment.flower_part import CONTROL_SECRET, part_command
from fedmoe.deployment.folder import Folder
from fedmoe.deployment.ports import parse_address
from fedmoe.errors import FedMoEError
from fedmoe.files import read_json, write_json
from fedmoe_server.deploy.certificates import Certificates
from fedmoe_server.deploy.deployed import AdmittedClient, admitted_clients

CONNECTION = "fedmoe"  # name of the SuperLink in Flower's configuration
FLWR_SECONDS = 120.0  # limit for one command of Flower's


@dataclass(frozen=True)
class Addresses:
    """Where a server listens: ``clients`` for the nodes (gRPC), ``control`` for this machine's commands (HTTPS)."""

    clients: str
    control: str


class ServerFolder(Folder):
    """The places of a server, and what is written there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.certificates = path / "certificates"  # authority, certificate and keys that were made here
        self.database = path / "superlink.db"  # of SuperLink: registered keys, runs, messages
        self.submitted = path / "runs"  # what was submitted, a file for each run
        self.clients = path / "clients.json"  # the clients that were admitted
        self._revoked = path / "revoked.json"  # those that were, and are no more

    def remember(self, addresses: Addresses, certificates: Certificates) -> None:
        """Write down how this machine's commands reach the server, for us and for Flower's own command line."""
        write_json(self.path / "server.json", asdict(addresses))
        authority = self.path / "ca.crt"  # the one file that clients need
        authority.write_bytes(certificates.authority.read_bytes())
        (self.flower_home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f"address = {json.dumps(addresses.control)}\nroot-certificates = {json.dumps(str(authority.absolute()))}\n",
            encoding="utf-8",
        )

    def addresses(self) -> Addresses:
        """Return where the server listens. Raises FedMoEError if there never was one in this folder."""
        found = read_json(self.path / "server.json")
        if found is None:
            raise FedMoEError(f"there is no server in {self.path}: start one with 'up', or give its --dir")
        return Addresses(**found)

    def admitted(self) -> list[AdmittedClient]:
        """Return the clients that were admitted, in that order."""
        return admitted_clients(self.clients)

    def admit(self, client: AdmittedClient) -> None:
        """Write down a client that the SuperLink has registered."""
        others = [entry for entry in self.admitted() if entry.client != client.client]
        write_json(self.clients, [asdict(entry) for entry in [*others, client]])

    def revoked(self) -> list[AdmittedClient]:
        """Return the clients that were admitted once and then revoked, in that order."""
        return admitted_clients(self._revoked)

    def revoke(self, client: AdmittedClient) -> None:
        """Write down that a client is admitted no more, which a run that goes on reads too."""
        write_json(self._revoked, [asdict(entry) for entry in [*self.revoked(), client]])
        write_json(self.clients, [asdict(entry) for entry in self.admitted() if entry.client != client.client])

    def flwr(self, *words: str) -> dict[str, Any]:
        """Run a command of Flower's and return its answer.

        Raises FedMoEError with what it says: its exit status is 0 even for some failures.
        """
        command = part_command("flwr", *words, "--format", "json")
        environment = self.environment(os.environ)
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=FLWR_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise FedMoEError(
                f"'flwr {words[0]}' did not answer within {FLWR_SECONDS:.0f} s: is the server up?"
            ) from error
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            answer = {"success": False, "error-message": done.stderr or done.stdout}
        if not answer.get("success"):
            why = " ".join(str(answer.get("error-message", answer)).split())
            raise FedMoEError(f"'flwr {' '.join(words[:2])}' failed: {why}")
        return answer

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of every program of this folder; they know the secret of the control port."""
        return {**super().environment(base), CONTROL_SECRET: str(self.secret("control").absolute())}


def superlink_command(
    folder: ServerFolder, addresses: Addresses, certificates: Certificates, extra: Sequence[str]
) -> list[str]:
    """Return the command of SuperLink: TLS on every port, only registered keys, and a database.

    extra: further options of ``flower-superlink``.
    """
    host, port = parse_address(addresses.control)
    return part_command(
        "flower-superlink",
        *("--ssl-ca-certfile", str(certificates.authority)),
        *("--ssl-certfile", str(certificates.certificate)),
        *("--ssl-keyfile", str(certificates.key)),
        "--enable-supernode-auth",
        *("--host", host, "--port", str(port)),
        *("--fleet-api-type", "grpc-rere", "--fleet-api-address", addresses.clients),
        *("--database", str(folder.database)),
        "--disable-runtime-dependency-installation",
        *("--isolation", "process", "--superexec-auth-secret-file", str(folder.secret("superexec").absolute())),
        *extra,
    )
