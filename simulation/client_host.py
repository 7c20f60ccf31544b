"""What executes clients: one call of a ClientApp, and the host that keeps many clients resident.

Neither imports torch, Ray, the model or the data: those come with the ClientApp, if it wants them.
"""

from __future__ import annotations

import importlib
import os
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from errors import FedMoEError
from simulation.client_files import read_clients, write_clients
from simulation.flower_runtime import (
    CLIENT_RAISED,
    NUM_PARTITIONS,
    PARTITION_ID,
    Metadata,
    Record,
    copy_records,
    error_reply,
    make_message,
)

RunConfig = dict[str, bool | int | float | str]


@lru_cache(maxsize=8)
def load_client_app(reference: str) -> ClientApp:
    """Import ``"module:attribute"`` and return the ClientApp found there. Raises FedMoEError if there is none."""
    module_name, _, attributes = reference.partition(":")
    if not module_name or not attributes:
        raise FedMoEError(f"client app '{reference}': write it as 'module:attribute', as in 'fedmoe_client.app:app'")
    try:
        found: object = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:
        raise FedMoEError(f"client app '{reference}' cannot be loaded: {one_line(error)}") from error
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
    client_id = context.node_config[PARTITION_ID]
    before = copy_records(context.state)
    try:
        reply = app(message, context)
        if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise TypeError(f"the client app returned {type(reply).__name__}, not a Message with reply_to=message")
        return reply
    except (Exception, SystemExit) as error:  # whatever a client raises is its own failure, not its host's
        context.state = before
        return error_reply(
            message, CLIENT_RAISED, f"client {client_id}: {message.metadata.message_type}: {one_line(error)}"
        )


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


@dataclass(frozen=True)
class Job:
    """One message for one client. An ``int`` in ``content`` stands for a record that ``ClientHost.receive`` got."""

    client_id: int
    metadata: Metadata
    content: Mapping[str, Record | int]


class ClientHost:
    """Executes clients one after the other and keeps their private state between rounds (run as a Ray actor)."""

    def __init__(self, app: str | bytes, num_clients: int, run_id: int, run_config: RunConfig) -> None:
        """Remember the arguments; ``load`` imports the app, so that its errors come out of a normal call.

        ``app``: ``"module:attribute"`` or a pickled ClientApp.
        """
        self._source = app
        self._num_clients = num_clients
        self._run_id = run_id
        self._run_config = run_config
        self._states: dict[int, RecordDict] = {}  # only of clients that keep something
        self._shared: dict[int, Record] = {}

    def load(self) -> int:
        """Import the ClientApp and return this host's process id. Raises FedMoEError if that fails."""
        if isinstance(self._source, str):
            self._app = load_client_app(self._source)
            return os.getpid()
        try:
            self._app = pickle.loads(self._source)
        except Exception as error:
            raise FedMoEError(
                f"the ClientApp object cannot be sent to the clients' hosts ({one_line(error)}): "
                "name it as 'module:attribute' instead"
            ) from error
        return os.getpid()

    def receive(self, key: int, record: Record) -> None:
        """Keep a record that many messages of a round carry, until ``forget``."""
        self._shared[key] = record

    def forget(self, keys: Sequence[int]) -> None:
        """Drop records of a round that is over."""
        for key in keys:
            self._shared.pop(key, None)

    def execute(self, jobs: Sequence[Job], deadline: float | None) -> list[Message | None]:
        """Execute messages in the given order; ``None`` for those not begun by ``deadline`` (Unix time, s)."""
        return [None if deadline is not None and time.time() > deadline else self._execute(job) for job in jobs]

    def _execute(self, job: Job) -> Message:
        content = RecordDict()
        for name, record in job.content.items():
            content[name] = self._shared[record] if isinstance(record, int) else record
        # A copy: whatever a client does to its message, the next one gets the original.
        message = make_message(metadata=job.metadata, content=copy_records(content))
        context = Context(
            run_id=self._run_id,
            node_id=job.metadata.dst_node_id,
            node_config={PARTITION_ID: job.client_id, NUM_PARTITIONS: self._num_clients},
            state=self._states.get(job.client_id, RecordDict()),
            run_config=dict(self._run_config),
        )
        reply = call_client(self._app, message, context)
        if len(context.state):
            self._states[job.client_id] = context.state
        else:
            self._states.pop(job.client_id, None)
        return reply

    def save(self, path: str) -> int:
        """Write the private state of all clients that have any to a file; return how many."""
        return write_clients(Path(path), self._states)

    def restore(self, sources: Sequence[str | bytes], index: int, hosts: int) -> int:
        """Replace all private state by that of the clients of this host (client id % ``hosts`` == ``index``).

        ``sources``: paths, or the contents, of files that ``save`` wrote. Returns the number of clients found.
        Raises FedMoEError for a file that is damaged.
        """
        states: dict[int, RecordDict] = {}
        for source in sources:
            states.update(read_clients(source, lambda client_id: client_id % hosts == index))
        self._states = states
        return len(states)
