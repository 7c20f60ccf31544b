"""The host: keeps many clients resident and executes their messages, one by one or a stack at once.

Imports neither torch, Ray, the model nor the data: those come with the client app, if it wants them.
"""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmoe.errors import FedMoEError
from simulation.client_call import call_client, client_error, load_client_app, load_named, one_line
from simulation.flower_runtime import (
    NUM_PARTITIONS,
    PARTITION_ID,
    copy_records,
    make_message,
    records_from_bytes,
    records_to_bytes,
)
from simulation.pinning import Pinning
from simulation.ray.client_files import read_clients, write_clients
from simulation.ray.host_work import HostSettings, Job, Outcome, Stacked, Work
from simulation.ray.state_table import StateTable
from simulation.reduction import Reducer, clients_in


class ClientHost:
    """Executes clients one after the other and keeps their private state between rounds (run as a Ray actor)."""

    def __init__(self, settings: HostSettings) -> None:
        """Remember the settings; ``load`` imports the app, so that its errors come out of a normal call."""
        self._settings = settings
        self._states = StateTable(settings.state_memory)
        self._shared: dict[int, object] = {}
        self._reducers: dict[int, Reducer] = {}
        self._stacked: Stacked | None = None
        self._settled = False

    def load(self) -> int:
        """Import the ClientApp and return this host's process id. Raises FedMoEError if that fails."""
        with _no_collection():
            if self._settings.stacked is not None:
                self._stacked = load_named(self._settings.stacked, "stacked client function")  # type: ignore[assignment]
            source = self._settings.app
            self._app = load_client_app(source) if isinstance(source, str) else _unpickled(source)
        return os.getpid()

    def receive(self, shared: Mapping[int, object]) -> None:
        """Keep records that many messages of a round carry, and a reducer's factory, by their keys until ``forget``."""
        self._shared.update(shared)

    def forget(self, keys: Sequence[int]) -> None:
        """Drop what belongs to a round that is over."""
        for key in keys:
            self._shared.pop(key, None)
            self._reducers.pop(key, None)

    def execute(self, work: Work) -> Outcome:
        """Execute messages; keep the private state of their clients, and hand over what changed of it."""
        outcome = Outcome()
        stack = self._stacked is not None and _stackable(work.jobs)
        replies: Iterable[Message | None] | None = self._in_a_stack(work, outcome) if stack else None
        if replies is None:
            replies = self._one_by_one(work, outcome)
        if work.reducer is None:
            outcome.replies.extend(replies)
        else:
            self._reduce(work, work.reducer, replies, outcome)
        if not self._settled:
            # Model and data stay, as the modules do. The collector would go through all of them every few seconds, for
            # a quarter of a second each time, while the other hosts wait for this one.
            gc.freeze()
            self._settled = True
        return outcome

    def _one_by_one(self, work: Work, outcome: Outcome) -> Iterator[Message | None]:
        contents = self._contents(work.jobs)
        for job in work.jobs:
            if _too_late(work):
                yield None
                continue
            message, context = self._call(job, contents)
            reply = call_client(self._app, message, context)
            try:
                self._keep(job, _serialised(context.state), outcome)
            except ValueError as error:  # a number that Flower's wire format has no room for
                reply = client_error(message, context, error)
            yield reply

    def _in_a_stack(self, work: Work, outcome: Outcome) -> list[Message | None] | None:
        """Execute all messages at once; None: that failed, nothing has changed, and they have to go one by one."""
        assert self._stacked is not None
        if _too_late(work):
            return [None] * len(work.jobs)
        contents = self._contents(work.jobs)
        calls = [self._call(job, contents) for job in work.jobs]
        messages, contexts = [message for message, _ in calls], [context for _, context in calls]
        reduce = work.reducer is not None
        try:
            replies = _matched(messages, self._stacked(messages, contexts, reduce), reduce)
            states = [_serialised(context.state) for context in contexts]
        except Exception as error:  # one bad client must not cost the others their round
            outcome.notes.append(f"clients are trained one by one where a stack of them fails: {one_line(error)}")
            return None
        for job, state in zip(work.jobs, states, strict=True):
            self._keep(job, state, outcome)
        return replies

    def _reduce(self, work: Work, key: int, replies: Iterable[Message | None], outcome: Outcome) -> None:
        if key not in self._reducers:
            factory: Callable[[], Reducer] = self._shared[key]  # type: ignore[assignment]
            self._reducers[key] = factory()
        reducer = self._reducers[key]
        for reply in replies:
            if reply is not None:
                reducer.add(reply)
        if work.last:
            outcome.replies.extend(reducer.replies())

    def _contents(self, jobs: Sequence[Job]) -> dict[int, RecordDict]:
        """Return ``id()`` of a job's content -> the content with its shared records; usually all jobs have the same."""
        contents: dict[int, RecordDict] = {}
        for job in jobs:
            if id(job.content) not in contents:
                content = contents[id(job.content)] = RecordDict()
                for name, record in job.content.items():
                    content[name] = self._shared[record] if isinstance(record, int) else record  # type: ignore[assignment]
        return contents

    def _call(self, job: Job, contents: Mapping[int, RecordDict]) -> tuple[Message, Context]:
        """Return what a client is called with."""
        settings = self._settings
        # A copy: whatever a client does to its message, the next one gets the original.
        message = make_message(metadata=job.metadata, content=copy_records(contents[id(job.content)]))
        state = self._state_of(job)
        context = Context(
            run_id=settings.run_id,
            node_id=job.metadata.dst_node_id,
            node_config={PARTITION_ID: job.client_id, NUM_PARTITIONS: settings.num_clients},
            state=records_from_bytes(state) if state else RecordDict(),
            run_config=dict(settings.run_config),
        )
        return message, context

    def _state_of(self, job: Job) -> bytes:
        return (self._states.get(job.client_id) or b"") if job.state is None else job.state

    def _keep(self, job: Job, state: bytes, outcome: Outcome) -> None:
        if state == self._state_of(job):
            return
        outcome.changed.append((job.client_id, state))
        if job.state is None:
            self._put(job.client_id, state)

    def _put(self, client_id: int, state: bytes) -> None:
        if state:
            self._states.put(client_id, state)
        else:
            self._states.drop(client_id)

    def save(self, path: str) -> int:
        """Write the private state of all clients that have any to a file; return how many."""
        return write_clients(Path(path), self._states.items())

    def restore(self, paths: Sequence[str], pinning: Pinning, host: int) -> int:
        """Replace all private state by that of the clients that ``pinning`` gives to ``host``.

        ``paths``: files that ``save`` wrote. Returns the number of clients found. Raises FedMoEError for a file that
        is damaged.
        """
        self._states.clear()
        for path in paths:
            self.adopt(read_clients(Path(path), lambda client_id: bool(pinning[client_id] == host)))
        return len(self._states)

    def states(self, client_ids: Sequence[int]) -> list[bytes]:
        """Return the serialised private state of some clients, empty where there is none."""
        return [self._states.get(client_id) or b"" for client_id in client_ids]

    def adopt(self, states: Iterable[tuple[int, bytes]]) -> int:
        """Keep the serialised states of some clients; return the number of clients that now have any."""
        for client_id, state in states:
            self._put(client_id, state)
        return len(self._states)

    def clear(self) -> None:
        """Forget all private state."""
        self._states.clear()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Import without garbage collection: there is nothing to collect, and looking for it takes most of a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _unpickled(source: bytes) -> ClientApp:
    try:
        app: ClientApp = pickle.loads(source)
    except Exception as error:
        raise FedMoEError(
            f"the ClientApp object cannot be sent to the clients' hosts ({one_line(error)}): "
            "name it as 'module:attribute' instead"
        ) from error
    return app


def _stackable(jobs: Sequence[Job]) -> bool:
    """Whether messages may be executed at once: a client's second one needs the state that the first one leaves."""
    clients = {job.client_id for job in jobs}
    return len(clients) == len(jobs) and all(job.metadata.message_type == "train" for job in jobs)


def _too_late(work: Work) -> bool:
    return work.deadline is not None and time.time() > work.deadline


def _serialised(state: RecordDict) -> bytes:
    return records_to_bytes(state) if len(state) else b""


def _matched(messages: Sequence[Message], replies: Sequence[Message], reduce: bool) -> list[Message | None]:
    """Check that replies stand for all messages; in the order of the messages unless they are reduced."""
    if reduce:
        clients = sum(clients_in(reply) for reply in replies)
        if clients != len(messages):
            raise ValueError(f"the stacked function answered for {clients} clients of {len(messages)}")
        return list(replies)
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    if len(replies) != len(messages) or any(message.metadata.message_id not in by_message for message in messages):
        raise ValueError(
            f"the stacked function gave {len(replies)} replies that do not match its {len(messages)} messages"
        )
    return [by_message[message.metadata.message_id] for message in messages]
