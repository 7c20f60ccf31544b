"""The command ``python -m PACKAGE.check``: demands on a component are tried out, and a line says how each fared.

A demand is a function that is handed what is to be tried; it returns what was seen, or raises ``Broken``.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fedmoe.errors import FedMoEError, reason_of
from fedmoe.loading import parse_value

T = TypeVar("T")
Demands = Mapping[str, Callable[[T], str]]
ROOT = Path(__file__).parents[2]


class Broken(Exception):
    """A demand is not met; the message says what was seen, and what to do."""


@dataclass(frozen=True)
class Finding:
    """How a component fared with one demand. holds: None if it could not be tried, since another one is not met."""

    demand: str
    holds: bool | None
    seen: str

    def __str__(self) -> str:
        verdict = {True: "holds", False: "FAILS", None: "not tried"}[self.holds]
        return f"{self.demand:<34} {verdict}: {self.seen}"


def findings(first: Demands[T], then: Demands[T], subject: T) -> list[Finding]:
    """Try all demands; those in ``first`` are those without which the others cannot be tried."""
    found = [_tried(demand, check, subject) for demand, check in first.items()]
    if not all(finding.holds for finding in found):
        return found + [Finding(demand, None, "see above") for demand in then]
    return found + [_tried(demand, check, subject) for demand, check in then.items()]


def _tried(demand: str, check: Callable[[T], str], subject: T) -> Finding:
    try:
        return Finding(demand, True, check(subject))
    except Broken as broken:
        return Finding(demand, False, str(broken))
    except Exception as error:  # the component is the user's: whatever it raises, it is what was seen
        return Finding(demand, False, in_words(error))


def in_words(error: Exception) -> str:
    """Return one line that says what was raised, and in which line of code that is not ours."""
    if isinstance(error, FedMoEError):
        return " ".join(str(error).split())
    ours = [str(ROOT / package) for package in ("fedmoe", "data", "model", "strategies", "fedmoe_client")]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    own = [frame for frame in frames if not frame.filename.startswith(tuple(ours))]
    place = f"; {own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}: {own[-1].line}" if own else ""
    return f"{reason_of(error)}{place}"


def run(words: Sequence[str], usage: str, find: Callable[[str, Mapping[str, Any]], list[Finding]]) -> int:
    """Check the component that the words name, print what was found and return the exit status.

    find: returns the findings on a name and its arguments; it raises FedMoEError for those that are wrong.
    Status: 0 all demands hold, 1 one fails, 2 the name or the arguments are wrong.
    """
    if not words or {"-h", "--help"} & set(words):
        print(usage)
        return 0 if words else 2
    name, *rest = words
    try:
        found = find(name, _parameters(rest, usage))
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in found:
        print(finding)
    return 0 if all(finding.holds for finding in found) else 1


def _parameters(words: Sequence[str], usage: str) -> Mapping[str, Any]:
    parameters = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise FedMoEError(f"'{word}' is not key=value; {usage}")
        parameters[key] = parse_value(value)
    return parameters


@contextmanager
def global_chance(number: int) -> Iterator[None]:
    """Within the block Python's and NumPy's global generators are in the state of this number, and as before after."""
    states = random.getstate(), np.random.get_state()
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def as_in_a_run(chance: int) -> Iterator[None]:
    """Within the block Flower's messages can be made too. chance: number of the global generators' state."""
    # Not public: a Message is given the identity of the process that makes it, and outside of a run there is none.
    from flwr.supercore.task_identity import TaskIdentity

    identity = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    try:
        with global_chance(chance):
            yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = identity
