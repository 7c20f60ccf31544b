"""The one exception that is shown to a user as a single line, and why a client's answer is missing or unusable.

The latter is a kind, carried as the code of Flower's ``Error``, and one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum

REASON_LENGTH = 300


class FedMoEError(Exception):
    """Something a user can put right: the message says what is wrong, where, and what to do.

    Front doors (``sim.py``, ``python -m ...``) print ``error: <message>`` and exit with status 2.
    """


class TellableError(FedMoEError):
    """One whose message holds nothing that a client keeps to itself: a real client may tell the server."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" - did you mean 'x'?"`` for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" - did you mean '{close[0]}'?" if close else ""


class FailureKind(IntEnum):
    """What went wrong with a client's answer. Flower's own error codes are smaller than these."""

    REFUSED = 100
    """The answer arrived and a guard refused it."""
    RAISED = 101
    """The client raised an exception."""
    NO_REPLY = 102
    """No answer came in time."""
    LOST = 103
    """The client's node, or the process that simulates the client, died or is not there."""

    @property
    def word(self) -> str:
        """The kind as a record of a run names it, such as ``no-reply``."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of_code(cls, code: int) -> FailureKind:
        """Return the kind of an error's code, of ours or of Flower's; an unknown code counts as raised."""
        return cls(_OF_FLOWER.get(code, code if code in set(cls) else cls.RAISED))


_OF_FLOWER = {  # flwr.common.constant.ErrorCode; its other codes say that the client app failed
    3: FailureKind.NO_REPLY,  # the message has expired or was deleted
    4: FailureKind.NO_REPLY,  # the reply has expired or was deleted
    5: FailureKind.LOST,  # the node is not connected
    8: FailureKind.LOST,  # the process of the client app crashed
}


def reason_of(error: BaseException) -> str:
    """Return one line that says what was raised: the message of a ``FedMoEError``, else ``Type: message``."""
    said = str(error) if isinstance(error, FedMoEError) else f"{type(error).__name__}: {error}"
    return one_line(said).rstrip(": ")


def told_reason(error: BaseException) -> str:
    """Return what a real client tells the server of an error: messages name paths, item ids and lines of a history."""
    return reason_of(error) if isinstance(error, TellableError) else f"{type(error).__name__}: see the client's own log"


def one_line(text: str) -> str:
    """Return a text on one line, cut to ``REASON_LENGTH`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."
