"""One call of a ClientApp: finding the app, executing a message, turning what goes wrong into an error reply."""

from __future__ import annotations

import importlib
from functools import lru_cache

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmoe.errors import FedMoEError
from simulation.flower_runtime import CLIENT_RAISED, PARTITION_ID, copy_records, error_reply

RunConfig = dict[str, bool | int | float | str]


def load_named(reference: str, what: str) -> object:
    """Import ``"module:attribute"`` and return what is found there. FedMoEError: names ``what`` cannot be loaded."""
    module_name, _, attributes = reference.partition(":")
    if not module_name or not attributes:
        raise FedMoEError(f"{what} '{reference}': write it as 'module:attribute', as in 'fedmoe_client.app:app'")
    try:
        found: object = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:
        raise FedMoEError(f"{what} '{reference}' cannot be loaded: {one_line(error)}") from error
    return found


@lru_cache(maxsize=8)
def load_client_app(reference: str) -> ClientApp:
    """Import ``"module:attribute"`` and return the ClientApp found there. Raises FedMoEError if there is none."""
    found = load_named(reference, "client app")
    if not isinstance(found, ClientApp):
        raise FedMoEError(f"client app '{reference}' is a {type(found).__name__}, not a flwr.clientapp.ClientApp")
    return found


def one_line(error: BaseException) -> str:
    """Return ``Type: message`` of an exception on a single line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


def call_client(app: ClientApp, message: Message, context: Context) -> Message:
    """Execute one message on one client and return its reply.

    A client that raises, or returns something that is no reply to the message, gives an error reply that names the
    client, the stage and the exception; its private state is then what it was before the call.
    """
    before = copy_records(context.state)
    try:
        reply = app(message, context)
        if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise TypeError(f"the client app returned {type(reply).__name__}, not a Message with reply_to=message")
        return reply
    except (Exception, SystemExit) as error:  # whatever a client raises is its own failure, not its host's
        context.state = before
        return client_error(message, context, error)


def client_error(message: Message, context: Context, error: BaseException) -> Message:
    """Return the reply of a client that failed."""
    who = f"client {context.node_config[PARTITION_ID]}: {message.metadata.message_type}"
    return error_reply(message, CLIENT_RAISED, f"{who}: {one_line(error)}")


class ConfiguredClient(ClientApp):
    """A ClientApp as Flower's own runtime needs it: gives each call the run config and reports errors by client.

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
