"""The one exception that is shown to a user as a single line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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
