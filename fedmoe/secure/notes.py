"""What a client remembers of its secure sums, as JSON can hold it."""

from __future__ import annotations

from typing import Any, Protocol

from fedmoe.secure.failures import Refusal, RefusalKind
from fedmoe.secure.graph import Ring, plan
from fedmoe.secure.messages import Members, Session, SignedKeys, Terms

RUNS_REMEMBERED = 1000  # a forgotten sum that is replayed has new keys, which answers of the old one do not fit
SUMS_OF_A_RUN = 2  # the one that goes on, and the one that is prepared meanwhile
SUMS_AT_ONCE = 8  # of all runs
Notes = dict[str, Any]


class Notebook(Protocol):
    """Where a client keeps its notes. Nobody else may read them: they hold the keys of the sum that goes on."""

    def read(self) -> Notes:
        """Return what was written last; nothing at first."""

    def write(self, notes: Notes) -> None:
        """Keep notes; they survive a crash once this returns."""


class MemoryNotebook:
    """A notebook of one process."""

    def __init__(self) -> None:
        self._notes: Notes = {}

    def read(self) -> Notes:
        """Return a copy of what was written last."""
        return dict(self._notes)

    def write(self, notes: Notes) -> None:
        """Keep notes."""
        self._notes = dict(notes)


def sum_of(notes: Notes, session: Session) -> Notes | None:
    """Return the notes of one sum; None if the client is not in it."""
    found: list[Notes] = [each for each in notes.get("sums", []) if each["session"] == noted_session(session)]
    return found[0] if found else None


def with_sum(notes: Notes, noted: Notes) -> Notes:
    """Return the notes with those of one sum put in or replaced; the sums that were noted last stay beside it."""
    others = [each for each in notes.get("sums", []) if each["session"] != noted["session"]]
    run = noted["session"][0]
    same = [each for each in others if each["session"][0] == run][-SUMS_OF_A_RUN + 1 :]
    kept = [each for each in others if each["session"][0] != run or each in same]
    return {"begun": notes.get("begun", {}), "sums": [*kept[-SUMS_AT_ONCE + 1 :], noted]}


def begun_with(notes: Notes, session: Session) -> dict[str, int]:
    """Return run -> the number of its latest sum, with this one; a sum that is no later than that is refused."""
    begun = dict(notes.get("begun", {}))
    if session.number <= begun.pop(session.run, -1):
        raise Refusal(RefusalKind.REPLAYED, f"{session}: this client has begun it before, or a later one")
    kept = dict(list(begun.items())[-RUNS_REMEMBERED + 1 :])
    return {**kept, session.run: session.number}


def noted_session(session: Session) -> list[str | int]:
    """Return a session as notes hold it."""
    return [session.run, session.number]


def noted_terms(terms: Terms) -> list[int | float]:
    """Return terms as notes hold them."""
    return [terms.minimum, terms.dropouts, terms.corrupt]


def noted_keys(keys: SignedKeys) -> list[str | int]:
    """Return a member's keys as notes hold them."""
    return [keys.client, *(part.hex() for part in (keys.sealing, keys.masking, keys.promise, keys.signature))]


def members_of(notes: Notes) -> Members:
    """Return the members of the sum."""
    keys = (SignedKeys(client, *map(bytes.fromhex, parts)) for client, *parts in notes["members"])
    return Members(Session(*notes["session"]), tuple(keys))


def terms_of(notes: Notes) -> Terms:
    """Return the terms of the sum."""
    return Terms(*notes["terms"])


def ring_of(members: Members, terms: Terms) -> Ring:
    """Return the graph that follows from the members' keys. Raises FedMoEError if the terms cannot be kept."""
    clients = [keys.client for keys in members.keys]
    return Ring(clients, members.digest(terms), plan(len(clients), terms))
