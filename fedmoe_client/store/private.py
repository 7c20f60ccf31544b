"""A client's private parameters, kept between rounds and sent nowhere: in Flower's context, or in a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from fedmoe.wire import is_packed, packed_bytes, to_record, unpack
from fedmoe_client.store.folder import State, StateFolder

if TYPE_CHECKING:  # who only reads what a client keeps does not load Flower
    from flwr.app import RecordDict

GLOBAL = "global"  # the state that holds the arrays last received from the server
_RECORD = "private"
NamedArrays = dict[str, NDArray[np.float32]]
# Older values are kept for a server that goes back to a checkpoint; large private groups must not fill the disk.
OLDER_BYTES = 64 * 1024**2
KEPT_RUNS = 3  # that may still be resumed: a trial in between must not cost the long run its values


class PrivateParameters(ABC):
    """The client's own value of each parameter that is private, by name. A subclass is a place to keep them."""

    @abstractmethod
    def load(self) -> NamedArrays:
        """Return the kept arrays; empty before the client first trained with private parameters."""

    def save(self, arrays: NamedArrays) -> None:
        """Keep these arrays and no others: what has become shared is the server's again.

        Raises FloatingPointError if one is not finite, and keeps the old ones: it would spoil all rounds to come.
        """
        if any(not np.isfinite(array).all() for array in arrays.values()):
            raise FloatingPointError("a private parameter is not finite after training: lower training.learning_rate")
        self._keep(arrays)

    @abstractmethod
    def _keep(self, arrays: NamedArrays) -> None:
        """Keep finite arrays."""


class InContext(PrivateParameters):
    """Private parameters in the Flower context, as one packed array: a simulation's engine keeps and checkpoints it."""

    def __init__(self, state: RecordDict) -> None:
        """state: ``context.state``, which Flower keeps for this client."""
        self._state = state

    def load(self) -> NamedArrays:
        """Return the kept arrays."""
        record = self._state.array_records.get(_RECORD)
        if record is None:
            return {}
        if not is_packed(record):  # from a checkpoint of 0.1.0, which kept each array by its name
            return {name: array.numpy() for name, array in record.items()}
        return unpack(bytearray(packed_bytes(record)))

    def _keep(self, arrays: NamedArrays) -> None:
        if arrays:
            self._state[_RECORD] = to_record(arrays)
        else:
            self._state.pop(_RECORD, None)


@dataclass(frozen=True)
class Entry:
    """The private parameters after a round. run: the run's name, which stays the same when the run is resumed."""

    run: str
    round: int
    arrays: NamedArrays


@dataclass
class InFolder(PrivateParameters):
    """Private parameters in the client's state folder, for one message of the server.

    The values after each of the last rounds are kept: a message that comes twice starts from the same value both
    times, and when a run goes on from a checkpoint so do its clients.

    Attributes:
        store: the state folder.
        version: the model's version; each has values of its own.
        run, round: the run and the round of the message.
        training: whether this message trains; an evaluation uses the latest value, whatever its round.
        keep_rounds: rounds to keep behind this one, at least those that a resume may go back.
        memory: name of a user's history -> its latest items, which the experts attend over; kept beside. Empty: as
            it was.
        wanted: asked before anything is kept: whether the reply can still reach the server.
    """

    store: StateFolder
    version: str
    run: str
    round: int
    training: bool
    keep_rounds: int
    memory: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    wanted: Callable[[], bool] = lambda: True

    def load(self) -> NamedArrays:
        """Return the arrays to start from."""
        entries = self._entries()
        if self.training:
            entries = _up_to(entries, self.run, self.round - 1)
        # The run's own, also where another run has been there meanwhile; its first round begins where that one ended.
        own = [entry for entry in entries if entry.run == self.run]
        return (own or entries)[-1].arrays if entries else {}

    def _keep(self, arrays: NamedArrays) -> None:
        """Keep arrays as the value after this round, and forget what the same run said of later rounds.

        Raises FedMoEError if nobody waits for the reply: the client's state is that of rounds which the server knows.
        """
        if not self.wanted():
            raise FedMoEError("the node ended while the client trained: nothing is kept of this round")
        entries = _up_to(self._entries(), self.run, self.round - 1)
        self._write(_recent([*entries, Entry(self.run, self.round, arrays)], self.keep_rounds))

    def go_back(self, last: int) -> None:
        """Forget what this run did after round ``last``: the server goes on from there."""
        entries = self._entries()
        kept = _up_to(entries, self.run, last)
        if len(kept) < len(entries):
            self._write(kept)

    def _entries(self) -> list[Entry]:
        state = self.store.load(private_name(self.version))
        if state is None:
            return []
        found = []
        for number, about in enumerate(state.about["entries"]):
            names = about["names"]
            found.append(
                Entry(about["run"], about["round"], {name: state.arrays[f"{number}/{name}"] for name in names})
            )
        return found

    def _write(self, entries: list[Entry]) -> None:
        arrays = {f"{n}/{name}": array for n, entry in enumerate(entries) for name, array in entry.arrays.items()}
        latest = self.memory or kept_memory(self.store.load(private_name(self.version)))
        memory = {f"memory/{name}": items for name, items in latest.items()}
        about = [{"run": entry.run, "round": entry.round, "names": list(entry.arrays)} for entry in entries]
        self.store.save(private_name(self.version), State(arrays | memory, {"entries": about}))


def private_name(version: str) -> str:
    """Return the name of the state that holds a model version's private parameters."""
    return f"private-{version}"


def latest_private(state: State | None) -> NamedArrays:
    """Return the newest private parameters of a loaded state, for use on the device."""
    entries = [] if state is None else state.about["entries"]
    if state is None or not entries:
        return {}
    return {name: state.arrays[f"{len(entries) - 1}/{name}"] for name in entries[-1]["names"]}


def user_name(user: int, name: str) -> str:
    """Return the name of a parameter that is the own one of a silo's user."""
    return f"user {user}/{name}"


def of_user(arrays: NamedArrays, user: int) -> NamedArrays:
    """Return the own parameters of a silo's user by their names."""
    mark = user_name(user, "")
    return {name.removeprefix(mark): array for name, array in arrays.items() if name.startswith(mark)}


def kept_memory(state: State | None) -> dict[str, NDArray[np.int32]]:
    """Return the latest items of each user, by the name of its history, as they were at the last training."""
    arrays = {} if state is None else state.arrays
    return {name.removeprefix("memory/"): items for name, items in arrays.items() if name.startswith("memory/")}


def _up_to(entries: list[Entry], run: str, last: int) -> list[Entry]:
    """Leave out what a run did after round ``last``."""
    return [entry for entry in entries if entry.run != run or entry.round <= last]


def _recent(entries: list[Entry], rounds: int) -> list[Entry]:
    """Keep of each of the latest runs the last ``rounds`` rounds and the one before these; the newest in any case."""
    newest: dict[str, int] = {}  # run -> its latest round
    complete: set[str] = set()
    kept: list[Entry] = []
    size = 0
    for entry in reversed(entries):
        if entry.run in complete or (entry.run not in newest and len(newest) == KEPT_RUNS):
            continue
        size += sum(array.nbytes for array in entry.arrays.values()) if kept else 0
        if size > OLDER_BYTES:
            break
        kept.append(entry)
        if entry.round <= newest.setdefault(entry.run, entry.round) - rounds:
            complete.add(entry.run)
    return kept[::-1]
