"""Flower's superexec, which starts the process of an app: a program of its own here, so that it is kept running."""

from __future__ import annotations

from pathlib import Path

from fedmoe.deployment.flower_part import part_command
from fedmoe.deployment.folder import Folder
from fedmoe.deployment.ports import here, listens
from fedmoe.deployment.supervisor import Program


def superexec(
    folder: Folder,
    owner: Program,
    address: tuple[str, int],
    authority: Path | None = None,
    together: bool = False,
) -> Program:
    """Return the superexec of a SuperLink or SuperNode, which lets no other one fetch tasks: they share a secret.

    owner: started with ``--isolation process`` and the folder's secret; address: host and port where it listens;
    authority: certificate that its own comes from; None: without TLS, on this machine; together: see ``Program``.
    """
    host = here(address[0])
    command = part_command(
        "flower-superexec",
        *("--runtime-api-address", f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"),
        *("--superexec-auth-secret-file", str(folder.secret("superexec").absolute())),
        *(["--insecure"] if authority is None else ["--root-certificates", str(authority)]),
    )
    ready = lambda: listens(*address)  # noqa: E731
    return Program("superexec", command, needs=owner.name, together=together, ready=ready, beats=True)
