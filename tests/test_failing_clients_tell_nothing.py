"""Whatever goes wrong at a client: no byte that reaches the server holds an item of its history, or a path."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message
from test_deployed_run import FIRST_NODE, Loopback
from test_secure_run import SecureLoopback

from fedmoe.errors import FedMoEError
from fedmoe_client.device import task
from fedmoe_client.store import folder as store

ITEM, PLACE = "a-film-that-nobody-may-know-of", "a-folder-of-its-own"
FAILS = 1  # the client that does
Fault = Callable[[Path, pytest.MonkeyPatch], None]


def no_history(folder: Path, patch: pytest.MonkeyPatch) -> None:
    history(folder).unlink()


def history_that_is_a_folder(folder: Path, patch: pytest.MonkeyPatch) -> None:
    history(folder).unlink()
    (history(folder) / ITEM).mkdir(parents=True)


def history_of_no_text(folder: Path, patch: pytest.MonkeyPatch) -> None:
    history(folder).write_bytes(ITEM.encode() + b"\xff\xfe\n" * 9)


def history_that_is_too_short(folder: Path, patch: pytest.MonkeyPatch) -> None:
    history(folder).write_text(f"{ITEM}\n")


def history_of_unknown_items(folder: Path, patch: pytest.MonkeyPatch) -> None:
    history(folder).write_text(f"{ITEM}\n" * 9)


def no_catalogue(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for file in (folder / "catalogue").iterdir():
        file.unlink()


def state_that_is_damaged(folder: Path, patch: pytest.MonkeyPatch) -> None:
    state = folder / f"state-{FAILS}"
    for file in state.iterdir():
        file.write_bytes(ITEM.encode())


def state_that_is_a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    state = folder / f"state-{FAILS}"
    state.rename(folder / "moved")
    state.write_text(ITEM)


def full_disk(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left", str(path))

    patch.setattr(store, "write_file", full)


def a_bug(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def carry_out(*_: object, **__: object) -> None:
        raise KeyError(f"{ITEM} in {folder}")

    patch.setattr(task, "carry_out", carry_out)


def too_little_memory(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def carry_out(*_: object, **__: object) -> None:
        raise MemoryError(f"{ITEM} in {folder}")

    patch.setattr(task, "carry_out", carry_out)


FAULTS: list[Fault] = [
    no_history,
    history_that_is_a_folder,
    history_of_no_text,
    history_that_is_too_short,
    history_of_unknown_items,
    no_catalogue,
    state_that_is_damaged,
    state_that_is_a_file,
    full_disk,
    a_bug,
    too_little_memory,
]


def history(folder: Path) -> Path:
    return folder / f"history-{FAILS}.txt"


def all_bytes(message: Message) -> bytes:
    """Return what a message is made of, as it travels: itself, and all objects in it."""
    found = [message.deflate()]
    left = list((message.children or {}).values())
    while left:
        each = left.pop()
        found.append(each.deflate())
        left += (each.children or {}).values()
    return b"".join(found)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_failing_client_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, secure: bool
) -> None:
    folder = tmp_path / PLACE / "run"
    folder.parent.mkdir()
    words = ("num_rounds=2", "evaluate_every=0", "client_fraction=1", "max_failed_rounds=9", "min_reply_fraction=0.1")
    grid = SecureLoopback(folder, *words) if secure else Loopback(folder, words=(*plain_words(), *words))
    begun = False

    def fail_from_round_two(message: Message) -> bool:
        nonlocal begun
        number = message.content.config_records.get("config", {}).get("server-round")
        if number == 2 and not begun:
            begun = True
            fault(folder, monkeypatch)
        return False

    grid.fail = fail_from_round_two
    with contextlib.suppress(FedMoEError):
        grid.serve()
    assert begun
    errors = [reply for reply in grid.received if reply.has_error()]
    assert errors, "the fault must be one"
    known = [ITEM, PLACE, str(tmp_path)]
    for reply in grid.received:
        sent = all_bytes(reply)
        assert not [word for word in known if word.encode() in sent], sent[:500]
    assert FIRST_NODE + FAILS in {reply.metadata.src_node_id for reply in errors}


def plain_words() -> tuple[str, ...]:
    from test_deployed_run import WORDS

    return tuple(WORDS)


def test_the_test_sees_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that told the reason as it is would be found out."""
    monkeypatch.setattr("fedmoe_client.app.told_reason", str)
    with pytest.raises(AssertionError, match=ITEM):
        test_a_failing_client_tells_nothing(tmp_path, monkeypatch, history_of_unknown_items, False)
