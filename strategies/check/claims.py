"""What a strategy says of itself, or does without saying: each demand a function that tries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedmoe.check.command import Broken
from strategies.check.made_up import ROUNDS, Subject, Trial, Values, first_change, trained
from strategies.layers.layer import chain
from strategies.needs import needs_every_reply

WEIGHTS = (2, 4)  # of half of the clients, while the others have 1
EXTRA = "extra"  # a config record that made-up clients add to their replies; of metric records FedAvg allows one
NEAR = 0.01  # how near the share of these clients must come to that of squared weights


def own_start(subject: Subject) -> str:
    """Whether the strategy leaves the loop to the run: a ``start`` of its own would never be called."""
    for part in chain(subject.make()):
        if type(part).start is not Strategy.start:
            raise Broken(
                f"{type(part).__name__} has a start() of its own, which is never called: do in configure_train what it "
                "does before or between rounds (grid.send_and_receive reaches the clients there)"
            )
    return "the run's own loop"


def chance(subject: Subject) -> str:
    """Whether the result follows from the replies: the global generators are another run's, or another round's."""
    if any(type(part).__name__.startswith("DifferentialPrivacy") for part in chain(subject.make())):
        return "Flower's noise for privacy, which it draws from the global generators"
    if changed := first_change(subject.trained, subject.trial(chance=1).rounds(1, ROUNDS).model):
        raise Broken(
            f"'{changed}' depends on the global generators (np.random or random): make a generator of your own from a "
            "seed and the round, or a run cannot be repeated or resumed"
        )
    return "the result follows from the replies"


def all_move(subject: Subject) -> str:
    """Whether each shared parameter is trained: one that is put back in every round is never learned."""
    start = subject.course[0].before
    for name in start:
        if not first_change(start, subject.trained, [name]):
            raise Broken(
                f"'{name}' is unchanged after {ROUNDS} rounds in which all changed it: return what was aggregated"
            )
    return f"each has changed after {ROUNDS} rounds"


def present(subject: Subject) -> str:
    """Whether a round's result is that of its own replies, not of those of the round before."""

    def elsewhere(client: int, number: int, sent: Values) -> tuple[Values, int] | None:
        given = trained(client, number, sent)
        if given is None or number < ROUNDS:
            return given
        return {
            name: np.asarray(2.0 * sent[name] - value + 0.3, np.float32) for name, value in given[0].items()
        }, given[1]

    if not first_change(subject.trained, subject.trial().rounds(1, ROUNDS, elsewhere).model):
        raise Broken(
            "the model after a round is the same whatever the clients replied in it: it is a round old; return what "
            "aggregate_train has made of the replies it was given"
        )
    return "a round's result follows from its replies"


def needs(subject: Subject) -> str:
    """Whether a strategy that says it needs no single replies gives the same result for their mean."""
    if needs_every_reply(subject.make()):
        return "sees each reply"
    merged = subject.trial(every=False).rounds(1, ROUNDS).model
    for name, array in subject.trained.items():
        difference = float(np.abs(array - merged[name]).max())
        if difference > 1e-4 * (1.0 + float(np.abs(array).max())):
            raise Broken(
                f"needs_every_reply is False, but '{name}' differs by {difference:.3g} where the strategy sees the "
                "mean of the replies in place of each: set needs_every_reply = True in the class"
            )
    return "the mean of the replies is all it needs"


def squared(subject: Subject) -> str:
    """Whether weights count once: a mean that is weighted twice has the squares of the weights."""
    shares = [_share(subject, weight) for weight in (1, *WEIGHTS)]
    expected = [weight**2 / (weight**2 + 1) for weight in (1, *WEIGHTS)]
    if all(abs(share - wanted) < NEAR for share, wanted in zip(shares, expected, strict=True)):
        seen = ", ".join(f"{share:.2f}" for share in shares[1:])
        raise Broken(
            f"clients with {WEIGHTS[0]} and {WEIGHTS[1]} times the weight of the others get {seen} of the result: the "
            "squares of their weights; multiply by the weight once"
        )
    return "no squares of weights"


def records_kept(subject: Subject) -> str:
    """Whether a strategy around another one hands on all records of the replies that it hands on one by one."""
    outer = subject.make()
    inner = list(chain(outer))[-1]
    if inner is outer:
        return "no strategy inside, which would miss some"
    aggregate, seen = inner.aggregate_train, list[Message]()

    def watched(server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        given = list(replies)
        seen.extend(reply for reply in given if reply.has_content())
        return aggregate(server_round, given)

    inner.aggregate_train = watched  # type: ignore[method-assign]
    said = getattr(outer, "example_records", {})
    outer.example_records = {**said, EXTRA: {"value": "kept"}}  # type: ignore[attr-defined]
    Trial(outer).round(1)
    if len(seen) == 1:
        return "one reply stands for all"
    if any(EXTRA not in reply.content for reply in seen):
        raise Broken(
            f"{type(inner).__name__} gets replies without the further records that clients sent: hand on the replies "
            "with all of their content, or copy what it holds"
        )
    return "further records are handed on"


def _share(subject: Subject, weight: int) -> float:
    """Return how far the result lies on the way from what half of the clients reply to what the others do, 0 to 1."""

    def client(k: int, number: int, sent: Values) -> tuple[Values, int]:
        return _pulled(sent, k % 2 == 0), weight if k % 2 == 0 else 1

    trial = subject.trial()
    sent = trial.model
    found, far, near = trial.rounds(1, 1, client).model, _pulled(sent, True), _pulled(sent, False)
    way = sum(float(((far[name] - near[name]) ** 2).sum()) for name in sent)
    return sum(float(((found[name] - near[name]) * (far[name] - near[name])).sum()) for name in sent) / way


def _pulled(sent: Values, far: bool) -> Values:
    return {name: np.asarray(value + (0.2 if far else 0.1), np.float32) for name, value in sent.items()}


CLAIMS: Mapping[str, Callable[[Subject], str]] = {
    "a loop of its own": own_start,
    "chance": chance,
    "every parameter is trained": all_move,
    "the round's own replies": present,
    "needs_every_reply is true": needs,
    "weights: once": squared,
    "records of the replies are kept": records_kept,
}
