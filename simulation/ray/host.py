"""A host: keeps many clients and their private state resident, and executes their messages. It runs as a Ray actor.

It imports neither torch, the model nor the data: those come with the client app, if it wants them.
"""

from __future__ import annotations

import gc
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict

from fedmoe.errors import FailureKind, FedMoEError, reason_of
from simulation.client_apps import load_client_app, load_named
from simulation.flower_runtime import (
    NUM_PARTITIONS,
    PARTITION_ID,
    Record,
    call_client,
    copy_records,
    error_reply,
    make_message,
    records_from_bytes,
    records_to_bytes,
)
from simulation.ray.work import HostSettings, Job, NotReceived, Outcome, Reducer, Shared, Stacked, Work

CHUNK_MESSAGES = 32  # at most, where replies travel: more would delay the first ones
CHUNK_BYTES = 64 << 20  # about, of replies: they pass through the object store in one piece
MERGED_MESSAGES = 64  # at most, where a host merges the replies: a chunk is then its sign of life
STACKED_MESSAGES = 256  # at most, where clients are trained in stacks: enough to sort them by length
CLIENTS = "num-clients"  # metric of a reply that stands for several clients: how many


class StateTable:
    """Client id -> serialised private state: a temporary SQLite database, in memory up to a limit, beyond it on disk.

    The file has no name (it lies under TMPDIR), so a process that is killed leaves none.
    """

    def __init__(self, memory: int) -> None:
        """``memory``: bytes that may be kept in memory, about."""
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in ("page_size = 65536", f"cache_size = -{memory >> 10}", "journal_mode = OFF", "synchronous = OFF"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE states (client INTEGER PRIMARY KEY, state BLOB)")

    def get(self, client_id: int) -> bytes | None:
        """Return a client's state, None if there is none."""
        row = self._query("SELECT state FROM states WHERE client = ?", client_id)
        return row and bytes(row[0])

    def put(self, states: Iterable[tuple[int, bytes]]) -> None:
        """Keep states in place of these clients' earlier ones. Raises FedMoEError if the disk cannot take them."""
        try:
            self._database.executemany("REPLACE INTO states VALUES (?, ?)", states)
        except sqlite3.Error as error:
            raise FedMoEError(
                f"clients' state does not fit on the disk ({error}): free space, or point TMPDIR to another disk"
            ) from error

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield (client id, state) in the order of the ids."""
        yield from self._database.execute("SELECT client, state FROM states ORDER BY client")

    def clear(self) -> None:
        """Forget all clients."""
        self._query("DELETE FROM states")

    def _query(self, words: str, *values: int) -> Any:
        return self._database.execute(words, values).fetchone()


class ClientHost:
    """Executes clients one after the other, or a stack at once, and keeps their private state between rounds."""

    def __init__(self, settings: HostSettings) -> None:
        """Remember the settings; ``load`` imports the app, so that its errors come out of a normal call."""
        self._settings = settings
        self._states = StateTable(settings.state_memory)
        self._calls: dict[int, Shared] = {}
        self._reducers: dict[int, Reducer] = {}
        self._stacked: Stacked | None = None
        self._settled = False

    def load(self) -> None:
        """Import the ClientApp. Raises FedMoEError if that fails."""
        gc.disable()  # there is nothing to collect among imports, and looking for it takes most of a second
        try:
            if self._settings.stacked is not None:
                self._stacked = load_named(self._settings.stacked, "stacked client function")
            self._app = load_client_app(self._settings.app)
        finally:
            gc.freeze()
            gc.enable()

    def receive(self, call: int, shared: Shared) -> None:
        """Keep what the messages of an exchange share until ``forget``."""
        self._calls[call] = shared

    def forget(self, call: int) -> None:
        """Drop what belongs to an exchange that is over."""
        self._calls.pop(call, None)
        self._reducers.pop(call, None)

    def execute(self, work: Work) -> Outcome:
        """Execute messages; keep the private state of their clients, and hand over what changed of it."""
        outcome = Outcome()
        if work.call not in self._calls:  # Ray drops calls without a result while it cannot reach a host
            raise NotReceived(f"the records of exchange {work.call} have not come")
        factory = self._calls[work.call].reducer
        replies: Iterable[Message] | None = None
        if self._stacked is not None and _stackable(work.jobs):
            replies = self._in_a_stack(self._stacked, work, outcome)
        if replies is None:
            replies = self._one_by_one(work, outcome)
        if factory is None:
            outcome.replies.extend(replies)
        else:
            if work.call not in self._reducers:
                self._reducers[work.call] = factory()
            for reply in replies:
                self._reducers[work.call].add(reply)
            if work.last:
                outcome.replies.extend(self._reducers[work.call].replies())
        if not self._settled:
            # Model and data stay, as the modules do. The collector would go through all of them every few seconds, for
            # a quarter of a second each time, while the other hosts wait for this one.
            gc.freeze()
            self._settled = True
        return outcome

    def _one_by_one(self, work: Work, outcome: Outcome) -> Iterator[Message]:
        contents = self._contents(work)
        for job in work.jobs:
            message, context, before = self._call(job, contents)
            reply, after = call_client(self._app, message, context), before
            try:
                after = records_to_bytes(context.state)
            except ValueError as error:  # a number that Flower's wire format has no room for
                reply = error_reply(message, FailureKind.RAISED, reason_of(error))
            self._keep(job.client_id, before, after, outcome)
            yield reply

    def _in_a_stack(self, stacked: Stacked, work: Work, outcome: Outcome) -> list[Message] | None:
        """Execute all messages at once; None: that failed, nothing has changed, and they have to go one by one."""
        contents = self._contents(work)
        messages, contexts, before = zip(*(self._call(job, contents) for job in work.jobs), strict=True)
        reduce = self._calls[work.call].reducer is not None
        try:
            replies = _matched(messages, stacked(messages, contexts, reduce), reduce)
            after = [records_to_bytes(context.state) for context in contexts]
        except Exception as error:  # one bad client must not cost the others their round
            outcome.notes.append(f"clients are trained one by one where a stack of them fails: {reason_of(error)}")
            return None
        for job, old, new in zip(work.jobs, before, after, strict=True):
            self._keep(job.client_id, old, new, outcome)
        return replies

    def _contents(self, work: Work) -> dict[int, RecordDict]:
        """Return ``id()`` of a job's content -> the content with its shared records; usually all jobs have the same."""
        shared = self._calls[work.call].records
        contents: dict[int, RecordDict] = {}
        for job in work.jobs:
            if id(job.content) not in contents:
                content = contents[id(job.content)] = RecordDict()
                for name, record in job.content.items():
                    content[name] = shared[record] if isinstance(record, int) else record
        return contents

    def _call(self, job: Job, contents: Mapping[int, RecordDict]) -> tuple[Message, Context, bytes]:
        """Return what a client is called with, and its serialised private state."""
        settings = self._settings
        # A copy: whatever a client does to its message, the next one gets the original.
        message = make_message(metadata=job.metadata, content=copy_records(contents[id(job.content)]))
        state = self._states.get(job.client_id) or b""
        context = Context(
            run_id=settings.run_id,
            node_id=job.metadata.dst_node_id,
            node_config={PARTITION_ID: job.client_id, NUM_PARTITIONS: settings.num_clients},
            state=records_from_bytes(state),
            run_config=dict(settings.run_config),
        )
        return message, context, state

    def _keep(self, client_id: int, before: bytes, after: bytes, outcome: Outcome) -> None:
        if after != before:
            self._states.put([(client_id, after)])
            outcome.changed.append((client_id, after))

    def adopt(self, states: Iterable[tuple[int, bytes]], anew: bool = False) -> None:
        """Keep the serialised states of some clients; ``anew``: and forget all others, and all exchanges."""
        if anew:
            self._states.clear()
            self._calls.clear()
            self._reducers.clear()
        self._states.put(states)


def clients_in(reply: Message) -> int:
    """Return the number of clients that a reply stands for."""
    if reply.has_content():
        for record in reply.content.metric_records.values():
            if isinstance(count := record.get(CLIENTS), int):
                return count
    return 1


def _stackable(jobs: Sequence[Job]) -> bool:
    """Whether messages may be executed at once: a client's second one needs the state that the first one leaves."""
    clients = {job.client_id for job in jobs}
    return len(clients) == len(jobs) and all(job.metadata.message_type == "train" for job in jobs)


def _matched(messages: Sequence[Message], replies: Sequence[Message], reduce: bool) -> list[Message]:
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


def split_shared(contents: Sequence[RecordDict]) -> tuple[list[Record], dict[int, dict[str, Record | int]]]:
    """Return the ArrayRecords that several contents hold, and ``id()`` of a content -> the content as it travels.

    A content travels with the place of a shared record in place of the record. Other records are small.
    """
    arrays = [record for content in contents for record in content.array_records.values()]
    times = Counter(id(record) for record in arrays)
    shared: list[Record] = list({id(record): record for record in arrays if times[id(record)] > 1}.values())
    places = {id(record): place for place, record in enumerate(shared)}
    travelling: dict[int, dict[str, Record | int]] = {}
    for content in contents:
        if id(content) not in travelling:
            travelling[id(content)] = {name: places.get(id(record), record) for name, record in content.items()}
    return shared, travelling


def chunk_size(messages: int, reply_bytes: int | None, stacked: bool = False) -> int:
    """Return how many of a host's messages go into one chunk.

    ``reply_bytes``: of one reply, about; None: the host merges the replies. ``stacked``: clients are trained in stacks.
    Replies that travel one by one do so an eighth at a time, so that they are read while the host works on.
    """
    fit = messages if reply_bytes is None else max(1, CHUNK_BYTES // max(reply_bytes, 1))
    if reply_bytes is not None and not stacked:
        return min(-(-messages // 8), CHUNK_MESSAGES, fit)
    chunks = -(-messages // (min(fit, STACKED_MESSAGES) if stacked else MERGED_MESSAGES))  # equal, as few as possible
    return -(-messages // chunks)
