"""Demands on a client of one's own for which two trials must come out alike."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedmoe.check.command import Broken, in_words
from fedmoe.wire import NamedArrays
from fedmoe_client.check.made_up import CLIENTS, ROUNDS, Subject, Visit
from fedmoe_client.learning.own_client import trained_alone

NEAR = 1e-5  # how far numbers of a stack may be from those of a client alone


def chance(subject: Subject) -> str:
    """Whether a round follows from the run's seed alone."""
    if changed := _first_difference(subject.visits, subject.trial(chance=1).rounds()):
        raise Broken(
            f"{changed} depends on the global generators (np.random, random or torch): draw from "
            "data.sampling.generator(this.settings.seed, 'my purpose', this.number, this.client)"
        )
    return "the same round gives the same bits"


def alone(subject: Subject) -> str:
    """Whether clients know of each other, by what the object remembers."""
    if changed := _first_difference(subject.visits, subject.trial().rounds((1, 0))):
        raise Broken(
            f"{changed} depends on which clients were trained before: what a client remembers belongs into "
            "this.kept, not into self, which all clients of a process share"
        )
    return "no client knows of another"


def resume(subject: Subject) -> str:
    """Whether all that a client remembers is stored."""
    if changed := _first_difference(subject.visits, subject.trial(fresh=True).rounds()):
        raise Broken(
            f"{changed} differs where other processes take the later rounds, as after a resume: keep what a client "
            "remembers in this.kept"
        )
    return "equal bit for bit in a new process for each round"


def stack(subject: Subject) -> str:
    """Whether a client is trained in stacks, and is then what it is alone."""
    if hooks := trained_alone(subject.make()):
        return f"one by one on engine vectorized, because of {', '.join(hooks)}"
    stack = subject.trial()
    for number in range(1, ROUNDS + 1):
        expected = {visit.client: visit.arrays for visit in subject.visits if visit.number == number}
        try:
            found = stack.stack(number)
        except Exception as error:
            raise Broken(
                f"said to stack, but in a stack of clients: {in_words(error)} (there before_round comes after the "
                "steps: what changes the training belongs into step, loss or after_round)"
            ) from error
        for client in range(CLIENTS):
            if changed := _far(expected[client], found[client]):
                raise Broken(
                    f"round {number}: '{changed}' differs in a stack of clients, where before_round comes after the "
                    "steps: what changes the training belongs into step, loss or after_round"
                )
    return "in stacks on engine vectorized, with the same result"


def _first_difference(one: Iterable[Visit], other: Iterable[Visit]) -> str | None:
    """Return the first thing in which the same visits differ, in words."""
    others = {(visit.number, visit.client): visit for visit in other}
    for visit in one:
        like = others.get((visit.number, visit.client))
        for each in (visit, like):
            if each is not None and each.error is not None:
                raise each.error
        assert like is not None
        mine, theirs = ({**each.arrays, **each.numbers} for each in (visit, like))
        if mine.keys() != theirs.keys():
            return f"round {visit.number}: what client {visit.client} answers or keeps"
        for name in mine:
            if np.asarray(mine[name]).tobytes() != np.asarray(theirs[name]).tobytes():
                return f"round {visit.number}: client {visit.client}'s '{name}'"
    return None


def _far(one: NamedArrays, other: NamedArrays) -> str | None:
    """Return the first name at which arrays differ by more than sums in another order may."""
    for name in sorted({*one, *other}):
        if name not in one or name not in other or one[name].shape != other[name].shape:
            return name
        difference, size = (float(np.abs(each).max(initial=0.0)) for each in (one[name] - other[name], one[name]))
        if difference > NEAR * (1.0 + size):
            return name
    return None
