"""Finding a client app, sending it to other processes, and wrapping it for Flower's own simulation runtime."""

from __future__ import annotations

import importlib
import pickle
from functools import lru_cache
from operator import attrgetter
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from ray import cloudpickle

from fedmoe.errors import FedMoEError, reason_of
from simulation.flower_runtime import RunConfig, call_client


def load_named(source: str | bytes, what: str) -> Any:
    """Return what ``"module:attribute"`` names, or what ``pickled`` has made. FedMoEError: it cannot be loaded."""
    name = f"{what} object" if isinstance(source, bytes) else f"{what} '{source}'"
    try:
        if isinstance(source, bytes):
            return pickle.loads(source)
        module, _, attribute = source.partition(":")
        if not module or not attribute:
            raise FedMoEError("write it as 'module:attribute', as in 'fedmoe_client.app:app'")
        return attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:
        raise FedMoEError(f"{name} cannot be loaded: {reason_of(error)}") from error


@lru_cache(maxsize=8)
def load_client_app(source: str | bytes) -> ClientApp:
    """Return the ClientApp of ``load_named``. Raises FedMoEError if there is none."""
    found = load_named(source, "client app")
    if not isinstance(found, ClientApp):
        raise FedMoEError(f"client app '{source!s}' is a {type(found).__name__}, not a flwr.clientapp.ClientApp")
    return found


def pickled(app: ClientApp) -> bytes:
    """Serialise a ClientApp object for other processes. Raises FedMoEError if it cannot be done."""
    try:
        data: bytes = cloudpickle.dumps(app)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise FedMoEError(
            f"client app object cannot be sent to the hosts: {reason_of(error)}; name it as 'module:attribute' instead"
        ) from error
    return data


class ConfiguredClient(ClientApp):
    """A ClientApp as Flower's own runtime needs it: gives each call the run config, and answers an exception itself.

    That runtime hands clients an empty run config and insists on getting the same one back.
    """

    def __init__(self, app: str | ClientApp, run_config: RunConfig) -> None:
        super().__init__()
        self._source = app
        self._run_config = run_config

    def __call__(self, message: Message, context: Context) -> Message:
        """Execute one message."""
        app = load_client_app(self._source) if isinstance(self._source, str) else self._source
        before = context.run_config
        context.run_config = dict(self._run_config)
        try:
            return call_client(app, message, context)
        finally:
            context.run_config = before
