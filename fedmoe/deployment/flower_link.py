"""What is mended of Flower's server, the SuperLink; ``flower_part`` says what and why."""

from __future__ import annotations

import importlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

CHORE_SECONDS = 1.0  # between two times that the server ends silent tasks and writes down how many bytes went
CLOCK_SECONDS = 300.0  # that the clock of a node may be ahead of the server's; Flower lets it be 305 s behind
HOLD_SECONDS = 2.5  # that a node's look for a message is held where there is none
STATE = "flwr.server.superlink.linkstate.sql_linkstate"


class Post:
    """Knows for which nodes a message lies ready, with all its objects, and which replies are still on their way."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sending: dict[str, list[int]] = defaultdict(list)  # by session, in which an app hands messages over
        self._ready: Counter[int] = Counter()
        self._arriving: dict[str, set[str]] = defaultdict(set)  # by session: the messages that are replied to

    def begun(self, session: str, node: int, whole: bool) -> None:
        """Note a message for a node. whole: nothing of it is missing; else its session will be ``ended``."""
        with self._changed:
            if whole:
                self._ready[node] += 1
                self._changed.notify_all()
            else:
                self._sending[session].append(node)

    def arriving(self, session: str, message: str) -> None:
        """Note a reply to a message of which something is missing; its session will be ``ended``."""
        with self._changed:
            self._arriving[session].add(message)

    def whole(self, messages: Collection[str]) -> set[str]:
        """Return the messages to which no reply is on its way."""
        with self._changed:
            return set(messages).difference(*self._arriving.values())

    def ended(self, session: str) -> None:
        """Note that all objects of a session's messages are there, or that it was given up."""
        with self._changed:
            self._arriving.pop(session, None)
            if nodes := self._sending.pop(session, None):
                self._ready.update(nodes)
                self._changed.notify_all()

    def wait(self, node: int, seconds: float) -> None:
        """Return when a message for a node lies ready, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready[node] > 0, seconds)

    def looked(self, node: int, found: bool) -> None:
        """Note that a node was given a message, or that there is none for it after all."""
        with self._changed:
            self._ready[node] = max(0, self._ready[node] - 1) if found else 0


def hold_looks(post: Post) -> None:
    """Let a node's look for a message wait for one, so that it need not look again and again.

    A reply is handed to the app once all of it is there. Flower hands it over before, and the app then waits for the
    rest: a client that vanishes while it sends would keep the round, beyond its deadline, for three minutes.
    """
    links: Any = importlib.import_module(STATE).SqlLinkState
    handler: Any = importlib.import_module("flwr.server.superlink.fleet.message_handler.message_handler")
    store, put, clean, pull = (
        links.store_message_and_object_tree,
        links.store_object,
        links._cleanup_push_session,
        handler.pull_messages,
    )
    replies = links.get_message_res
    cleaned = threading.local()

    def store_and_note(state: Any, message: Any, tree: Any, session: str) -> Any:
        stored, missing = store(state, message, tree, session)
        if stored and not message.metadata.reply_to_message_id:
            post.begun(session, message.metadata.dst_node_id, whole=not missing)
        elif stored and missing:
            post.arriving(session, message.metadata.reply_to_message_id)
        return stored, missing

    def clean_and_note(state: Any, session: str, **others: Any) -> Any:
        cleaned.session = session
        done = clean(state, session, **others)
        if not getattr(cleaned, "putting", False):  # it has expired
            post.ended(session)
        return done

    def put_and_tell(state: Any, run: int, session: str, *of_object: Any) -> Any:
        cleaned.session, cleaned.putting = None, True
        try:
            stored = put(state, run, session, *of_object)
        finally:
            cleaned.putting = False
        if cleaned.session == session:  # with the last object, and the database holds it by now
            post.ended(session)
        return stored

    def whole_replies(state: Any, message_ids: set[str], run_id: int) -> Any:
        return replies(state, message_ids=post.whole(message_ids), run_id=run_id)

    def wait_and_pull(request: Any, **others: Any) -> Any:
        node = request.node.node_id
        post.wait(node, HOLD_SECONDS)
        response = pull(request=request, **others)
        post.looked(node, found=bool(response.messages_list))
        return response

    links.store_message_and_object_tree, links.store_object = store_and_note, put_and_tell
    links._cleanup_push_session, handler.pull_messages = clean_and_note, wait_and_pull
    links.get_message_res = whole_replies


def do_chores_seldom() -> None:
    """Let a server end silent tasks, and write down how many bytes a run's messages had, once in a while."""
    links: Any = importlib.import_module(STATE).SqlLinkState
    end_tasks, write_traffic = links._cleanup_expired_task_tokens, links.store_traffic
    lock, traffic, done = threading.Lock(), Counter[tuple[int, str]](), [-CHORE_SECONDS]

    def note_traffic(_: Any, run_id: int, **of_bytes: int) -> None:
        with lock:
            traffic.update({(run_id, name): number for name, number in of_bytes.items()})

    def do_chores(state: Any) -> None:
        with lock:
            if time.monotonic() - done[0] < CHORE_SECONDS:
                return
            done[0], noted = time.monotonic(), dict(traffic)
            traffic.clear()
        end_tasks(state)
        for run in {run for run, _ in noted}:
            write_traffic(state, run, **{name: noted.get((run, name), 0) for name in ("bytes_sent", "bytes_recv")})

    links._cleanup_expired_task_tokens, links.store_traffic = do_chores, note_traffic


def forgive_clocks() -> None:
    """Let in nodes whose clocks are ahead as far as those that are behind, and tell the others what is wrong."""
    from grpc import StatusCode

    nodes: Any = importlib.import_module("flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor")
    nodes.MIN_TIMESTAMP_DIFF = -CLOCK_SECONDS
    refuse = nodes._unary_unary_rpc_terminator

    def refuse_and_say_why(message: str, *code: Any) -> Any:
        if message == "Invalid timestamp":
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            why = f"this client's clock is more than 5 minutes from the server's, which says {clock} UTC: set it"
            return refuse(why, StatusCode.FAILED_PRECONDITION)  # of the code that Flower gives no node tells the reason
        return refuse(message, *code)

    nodes._unary_unary_rpc_terminator = refuse_and_say_why
