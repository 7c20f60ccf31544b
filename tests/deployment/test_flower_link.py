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


class Server:
    """Flower's server with its database left out: what is handed over in one session, of two objects."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        links = importlib.import_module(flower_link.STATE).SqlLinkState
        self.handler: Any = importlib.import_module("flwr.server.superlink.fleet.message_handler.message_handler")
        self.missing = ["one", "two"]

        def put(state: Any, run: int, session: str, name: str, content: bytes) -> bool:
            self.missing.remove(name)
            if not self.missing:
                state._cleanup_push_session(session, cleanup_messages=False)
            return True

        def pull(request: Any, state: Any, store: Any) -> Any:
            return SimpleNamespace(messages_list=["message"] if not self.missing else [])

        monkeypatch.setattr(links, "store_message_and_object_tree", lambda *_: (True, list(self.missing)))
        monkeypatch.setattr(links, "store_object", put)
        monkeypatch.setattr(links, "_cleanup_push_session", lambda *_, **__: None)
        monkeypatch.setattr(links, "get_message_res", lambda _, message_ids, run_id: sorted(message_ids))
        monkeypatch.setattr(self.handler, "pull_messages", pull)
        hold_looks(Post())
        self.state: Any = object.__new__(links)

    def hand_over(self, node: int, reply_to: str = "") -> None:
        message = SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=reply_to, dst_node_id=node))
        assert self.state.store_message_and_object_tree(message, "tree", "session") == (True, ["one", "two"])


def test_a_node_gets_its_message_when_the_last_object_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_link, "HOLD_SECONDS", LONG)
    server = Server(monkeypatch)
    found: list[Any] = []
    request = SimpleNamespace(node=SimpleNamespace(node_id=NODE))
    look = lambda: found.append(server.handler.pull_messages(request=request, state=server.state, store=None))  # noqa: E731
    looking = threading.Thread(target=look)
    looking.start()
    server.hand_over(NODE)
    assert server.state.store_object(5, "session", "one", b"")
    assert looking.is_alive()
    assert server.state.store_object(5, "session", "two", b"")
    looking.join(LONG)
    assert [each.messages_list for each in found] == [["message"]]


@pytest.mark.parametrize("expires", [False, True])
def test_an_app_gets_a_reply_when_its_last_object_is_stored(monkeypatch: pytest.MonkeyPatch, expires: bool) -> None:
    """Or when Flower has given it up, and tells so. Until then the others' replies are not kept back."""
    server = Server(monkeypatch)
    server.hand_over(NODE, reply_to="question")
    pull = lambda: server.state.get_message_res(message_ids={"question", "other"}, run_id=5)  # noqa: E731
    assert pull() == ["other"]
    server.state.store_object(5, "session", "one", b"")
    assert pull() == ["other"]
    if expires:
        server.state._cleanup_push_session("session", cleanup_messages=True)
    else:
        server.state.store_object(5, "session", "two", b"")
    assert pull() == ["other", "question"]


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
