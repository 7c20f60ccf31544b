"""The driver's side of one host: its actor, the chunks it was given, and how it is started again after a death."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from flwr.app import Message
from flwr.clientapp import ClientApp
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from errors import FedMoEError
from simulation.client_host import ClientHost, Job, RunConfig
from simulation.ray_cluster import worker_environment


@dataclass(frozen=True)
class HostSettings:
    """What every host of a grid is started with."""

    app: str | bytes
    num_clients: int
    run_id: int
    run_config: RunConfig
    client_cpus: float
    client_gpus: float


@dataclass
class Chunk:
    """Requests that a host executes in one call.

    ``wanted``: False once nobody waits for the replies. ``done``: replied to, be it with errors.
    """

    requests: Sequence[Message]
    reference: Any
    wanted: bool = True
    done: bool = False


@dataclass
class RayHost:
    """One Ray actor with the clients whose id modulo the number of hosts is ``index``."""

    index: int
    settings: HostSettings
    queue: deque[Chunk] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the actor, without waiting for it."""
        settings = self.settings
        actor_class: Any = ray.remote(ClientHost)
        self._actor: Any = actor_class.options(
            num_cpus=settings.client_cpus,
            num_gpus=settings.client_gpus,
            max_restarts=0,  # a restarted actor has lost its clients' state: the grid starts it again itself
            runtime_env={"env_vars": worker_environment(settings.client_cpus)},
        ).remote(settings.app, settings.num_clients, settings.run_id, settings.run_config)
        self._loading = self._actor.load.remote()

    def wait_until_loaded(self) -> None:
        """Wait for the ClientApp's import. Raises FedMoEError if it fails, or if the actor dies of it."""
        self._get(self._loading, "loading the client app")

    def share(self, records: Mapping[int, Any]) -> None:
        """Hand over references of records that later jobs name by key; each is deserialised once."""
        for key, reference in records.items():
            self._actor.receive.options(num_returns=0).remote(key, reference)

    def forget(self, keys: Sequence[int]) -> None:
        """Let the host drop shared records, once it has done what it was given so far."""
        self._actor.forget.options(num_returns=0).remote(list(keys))

    def submit(self, requests: Sequence[Message], jobs: Sequence[Job], deadline: float | None) -> Chunk:
        """Queue a chunk; the host executes its chunks in the order they were submitted."""
        chunk = Chunk(requests, self._actor.execute.remote(list(jobs), deadline))
        self.queue.append(chunk)
        return chunk

    def save(self, path: str) -> Any:
        """Begin to write the clients' state; pass what is returned to ``result``."""
        return self._actor.save.remote(path)

    def restore(self, sources: Sequence[str | bytes], hosts: int) -> Any:
        """Begin to replace the clients' state; pass what is returned to ``result``."""
        return self._actor.restore.remote(list(sources), self.index, hosts)

    def result(self, reference: Any, doing: str) -> int:
        """Wait for ``save`` or ``restore`` and return its number of clients. Raises FedMoEError if it failed."""
        count: int = self._get(reference, doing)
        return count

    def stop(self) -> None:
        """End the actor at once."""
        ray.kill(self._actor)

    def _get(self, reference: Any, doing: str) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, FedMoEError):
                raise FedMoEError(str(error.cause)) from None
            raise FedMoEError(f"host {self.index} failed while {doing}: {first_line(error.cause)}") from error
        except RayError as error:
            raise HostDied(f"host {self.index} died while {doing}: {first_line(error)}") from error


class HostDied(FedMoEError):
    """The actor's process is gone, and with it what its clients kept since the last snapshot."""


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an exception's message: Ray's go on for a page."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def pickled_app(app: ClientApp) -> bytes:
    """Serialise a ClientApp object for the hosts. Raises FedMoEError if it cannot be done."""
    try:
        data: bytes = cloudpickle.dumps(app)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise FedMoEError(
            f"the ClientApp object cannot be sent to the clients' hosts ({first_line(error)}): "
            "name it as 'module:attribute' instead"
        ) from error
    return data
