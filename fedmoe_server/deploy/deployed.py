"""What the server app knows of a deployment: which clients were admitted, and where a person follows the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fedmoe.deployment.folder import Folder
from fedmoe.files import read_json
from fedmoe.packages import app_version

if TYPE_CHECKING:  # the supervisor loads neither Flower nor settings
    from data.dataset import Dataset
    from fedmoe.settings import DeploymentSettings, Settings
    from fedmoe_server.rounds.clients import ClientDirectory


@dataclass(frozen=True)
class AdmittedClient:
    """A client whose public key is registered: its client id, its node id, the SHA-256 of its public key, and the key.

    key: empty for a client that an earlier version admitted.
    """

    client: int
    node: int
    fingerprint: str
    key: str = ""


def admitted_clients(clients: Path) -> list[AdmittedClient]:
    """Return the clients in a ``clients.json``, in the order in which they were admitted."""
    return [AdmittedClient(**entry) for entry in read_json(clients, [])]


@dataclass(frozen=True)
class Deployed:
    """That a run's clients are real ones.

    clients: ``clients.json`` of the server's folder; None: all are admitted. run: an id that no other run has.
    sees: what the server sees of its clients, as the launcher has decided; "": there was no launcher.
    """

    clients: Path | None
    run: str = ""
    sees: str = ""

    def directory(self, settings: DeploymentSettings) -> ClientDirectory:
        """Return the directory of the clients: each node is who the server has admitted it as."""
        from fedmoe_server.rounds.clients import ClientDirectory

        return ClientDirectory(
            wait_seconds=settings.wait_seconds,
            timeout=settings.round_deadline or None,
            minimum=settings.min_clients,
            admitted=None if self.clients is None else partial(admitted_nodes, self.clients),
        )


def identity(settings: Settings, dataset: Dataset, done: int) -> dict[str, str | int]:
    """Return what the server is, told to each client before anything else: hashes of the catalogue and the features,
    the model's version, FedMoE's, and the round that the run goes on from. A client that differs refuses."""
    from model.version import model_version

    own = {"model": model_version(settings, dataset), "fedmoe": app_version()}
    return {**dataset.fingerprints(), **own, "round": done}


def admitted_nodes(clients: Path) -> dict[int, int]:
    """Return node id -> client id of the admitted clients in a ``clients.json``."""
    return {entry.node: entry.client for entry in admitted_clients(clients)}


def admitted_keys(clients: Path) -> dict[int, str]:
    """Return client id -> public key of the admitted clients in a ``clients.json``, of which a key is there."""
    return {entry.client: entry.key for entry in admitted_clients(clients) if entry.key}


def progress_log(clients: Path, run_dir: Path) -> Path:
    """Return the file into which the server app writes the lines that a person follows.

    clients: the ``clients.json`` of the server's folder; run_dir: the run's folder.
    """
    return Folder(clients.parent).logs / f"run-{run_dir.name}.log"


def log_of_apps(clients: Path) -> Path:
    """Return the file of the lines that name their run, of all runs. clients: as for ``progress_log``."""
    return Folder(clients.parent).logs / "serverapp.log"


@contextmanager
def held_log(log: Path) -> Iterator[TextIO]:
    """Yield a new log that is locked from its first moment until the block, or the process, ends."""
    begun = log.with_name(f".{log.name}.{os.getpid()}")
    with begun.open("w", encoding="utf-8") as file:
        flock(file, LOCK_EX)
        os.replace(begun, log)
        yield file


def held(log: Path) -> bool:
    """Whether the process that opened a log with ``held_log`` still has it."""
    try:
        with log.open("rb") as file:
            flock(file, LOCK_SH | LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
