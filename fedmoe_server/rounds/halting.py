"""How a run is ended before its time: by a callback, or by Ctrl-C, which waits for the end of the round."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from threading import Event, current_thread, main_thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmoe_server.rounds.record import RoundRecord


class Halt(Enum):
    """What a callback may return; anything else lets the run go on."""

    STOP = "stop"
    """No further round: the best model is evaluated, as after the last round."""
    PAUSE = "pause"
    """A checkpoint and nothing more: the run is there to be resumed."""


Callback = Callable[["RoundRecord"], object]


class Paused(Exception):  # noqa: N818  # it is no error
    """The run has a checkpoint of its last round and no result yet."""


class Interrupted(Paused):
    """Ctrl-C has asked for it."""


@contextmanager
def halting(callbacks: Sequence[Callback], interruptible: bool) -> Iterator[Callable[[RoundRecord], Halt | None]]:
    """Yield what is called after each round, calls the callbacks and returns what is asked for.

    interruptible: in this block Ctrl-C asks for a pause; a second one raises KeyboardInterrupt at once. Signals reach
    the main thread alone, so elsewhere they mean what they did.
    """
    pressed = Event()

    def press(*_: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        os.write(2, b"\nthe run pauses after this round; Ctrl-C again ends it at once\n")  # print may be at work

    def after(record: RoundRecord) -> Halt | None:
        wishes = [callback(record) for callback in callbacks]
        if pressed.is_set():
            return Halt.PAUSE
        return next((halt for halt in (Halt.PAUSE, Halt.STOP) if any(wish is halt for wish in wishes)), None)

    before: Any = signal.getsignal(signal.SIGINT)
    ours = interruptible and current_thread() is main_thread() and callable(before)  # not where it is ignored
    if ours:
        signal.signal(signal.SIGINT, press)
    try:
        yield after
    except Paused as paused:
        raise (Interrupted if pressed.is_set() else Paused)(*paused.args) from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
