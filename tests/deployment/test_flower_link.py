"""What is mended of Flower's server, without any process."""

from __future__ import annotations

import importlib
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from fedmoe.deployment import flower_link
from fedmoe.deployment.flower_link import Post, do_chores_seldom, hold_looks

NODE, OTHER = 11, 12
LONG = 30.0  # seconds, of which no test waits for more than a moment


def waited(post: Post, node: int, seconds: float = 0.02) -> bool:
    """Return whether a look for a message was held to its end."""
    begun = time.monotonic()
    post.wait(node, seconds)
    return time.monotonic() - begun >= seconds


def test_a_look_is_held_until_the_whole_message_is_there() -> None:
    post = Post()
    post.begun("session", NODE, whole=False)
    assert waited(post, NODE)  # its objects are still on their way
    looking = threading.Thread(target=post.wait, args=(NODE, LONG))
    looking.start()
    post.ended("another session")
    assert looking.is_alive()
    post.ended("session")
    looking.join(LONG)
    assert not looking.is_alive()
    assert waited(post, OTHER)  # whose message it is not


def test_each_message_lets_one_look_through() -> None:
    post = Post()
    post.begun("session", NODE, whole=True)
    post.begun("session", NODE, whole=True)
    for _ in range(2):
        assert not waited(post, NODE, LONG)
        post.looked(NODE, found=True)
    assert waited(post, NODE)
    post.begun("session", NODE, whole=True)
    post.looked(NODE, found=False)  # it had expired
    assert waited(post, NODE)


def test_a_node_gets_its_message_when_the_last_object_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's server with its database left out: an app hands a message of two objects over, a node looks for it."""
    links = importlib.import_module(flower_link.STATE).SqlLinkState
    handler: Any = importlib.import_module("flwr.server.superlink.fleet.message_handler.message_handler")
    missing = ["one", "two"]

    def put(state: Any, run: int, session: str, name: str, content: bytes) -> bool:
        missing.remove(name)
        if not missing:
            state._cleanup_push_session(session, cleanup_messages=False)
        return True

    def pull(request: Any, state: Any, store: Any) -> Any:
        return SimpleNamespace(messages_list=["message"] if not missing else [])

    monkeypatch.setattr(links, "store_message_and_object_tree", lambda *_: (True, list(missing)))
    monkeypatch.setattr(links, "store_object", put)
    monkeypatch.setattr(links, "_cleanup_push_session", lambda *_, **__: None)
    monkeypatch.setattr(handler, "pull_messages", pull)
    monkeypatch.setattr(flower_link, "HOLD_SECONDS", LONG)
    hold_looks(Post())
    state: Any = object.__new__(links)
    found: list[Any] = []
    request = SimpleNamespace(node=SimpleNamespace(node_id=NODE))
    look = lambda: found.append(handler.pull_messages(request=request, state=state, store=None))  # noqa: E731
    looking = threading.Thread(target=look)
    looking.start()
    message = SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id="", dst_node_id=NODE))
    assert state.store_message_and_object_tree(message, "tree", "session") == (True, ["one", "two"])
    assert state.store_object(5, "session", "one", b"")
    assert looking.is_alive()
    assert state.store_object(5, "session", "two", b"")
    looking.join(LONG)
    assert [each.messages_list for each in found] == [["message"]]


def test_a_server_ends_silent_tasks_and_counts_bytes_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    links = importlib.import_module("flwr.server.superlink.linkstate.sql_linkstate").SqlLinkState
    ended: list[float] = []
    written: list[tuple[int, int, int]] = []
    clock = [100.0]
    monkeypatch.setattr(flower_link.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(links, "_cleanup_expired_task_tokens", lambda _: ended.append(clock[0]))
    note = lambda _, run, bytes_sent, bytes_recv: written.append((run, bytes_sent, bytes_recv))  # noqa: E731
    monkeypatch.setattr(links, "store_traffic", note)
    do_chores_seldom()
    state: Any = object.__new__(links)
    for second in (100.0, 100.5, 101.5):
        clock[0] = second
        state.store_traffic(7, bytes_sent=10, bytes_recv=1)
        state.store_traffic(8, bytes_sent=0, bytes_recv=5)
        state._cleanup_expired_task_tokens()
    assert ended == [100.0, 101.5]
    assert sorted(written) == [(7, 10, 1), (7, 20, 2), (8, 0, 5), (8, 0, 10)]  # in all what was sent
