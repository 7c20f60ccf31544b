"""What is asked of a strategy, each demand a function that tries it out on made-up replies.

Partial aggregation is around the strategy in all of them, and the replies have passed its guards. Not asked is that
weights count in proportion: medians, Krum and q-FedAvg use them otherwise, or not at all.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedmoe.check.command import Broken, Finding, in_words
from fedmoe.check.command import findings as tried
from strategies.check.claims import CLAIMS
from strategies.check.made_up import CLIENTS, ROUNDS, WARMUP_ROUNDS, Client, Subject, Values, first_change, trained
from strategies.state import state_arrays

ORDERS: Sequence[Sequence[int]] = ([7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1, 7, 5, 2, 4])
LOST = 2  # the client whose reply is lost
AWAY = 0.5  # how far the result may turn from a reply that gains weight
HEAVY = 3  # the client whose weight is raised


def findings(make: Callable[[], Strategy]) -> list[Finding]:
    """Try all demands on strategies that ``make`` builds, a fresh one for each."""
    # q-FedAvg, Krum and Bulyan collect garbage at every reply; what is there by now need not be looked through again.
    gc.freeze()
    try:
        return tried(FIRST, THEN, Subject(make))
    finally:
        gc.unfreeze()


def _runs(subject: Subject) -> str:
    for stage in subject.course:
        if stage.raised is not None:
            hint = (
                "; if it is a record of its clients' replies, say what these add: example_records = "
                '{"record": {"metric": 1.0}} in the class'
            )
            words = f"round {stage.number}: {in_words(stage.raised)}"
            raise Broken(f"{words}{hint if isinstance(stage.raised, KeyError) else ''}")
        if stage.returned is None:
            raise Broken(f"round {stage.number}: nothing was aggregated, though all {CLIENTS} clients replied")
    return f"{ROUNDS} rounds of {CLIENTS} clients, the shared groups changing after round {WARMUP_ROUNDS}"


def _names(subject: Subject) -> str:
    for stage in subject.course:
        if stage.returned is None:
            continue
        if missing := sorted(set(stage.shared) - stage.returned.keys()):
            raise Broken(f"round {stage.number}: no '{missing[0]}' in the result")
        if added := sorted(stage.returned.keys() - set(stage.shared)):
            raise Broken(f"round {stage.number}: '{added[0]}' in the result is not shared")
    return "the result has the shared parameters' names"


def _shapes(subject: Subject) -> str:
    for stage in subject.course:
        for name, array in (stage.returned or {}).items():
            wanted = stage.before[name].shape or (1,) if name in stage.before else tuple(array.shape)
            if tuple(array.shape) != wanted:
                raise Broken(f"round {stage.number}: '{name}' has shape {list(array.shape)}, expected {list(wanted)}")
            if np.dtype(array.dtype).kind != "f":
                raise Broken(f"round {stage.number}: '{name}' is {array.dtype}, expected a floating-point type")
    return "shapes as they were, floating-point numbers"


def _finite(subject: Subject) -> str:
    for stage in subject.course:
        for name, array in (stage.returned or {}).items():
            if np.dtype(array.dtype).kind == "f" and not np.isfinite(array.numpy()).all():
                raise Broken(f"round {stage.number}: '{name}' has a value that is not finite")
    return "no NaN, no infinity"


def _weight_scale(subject: Subject) -> str:
    once, fourfold = (_after(subject, _weighted(factor)) for factor in (1, 4))
    _same(once, fourfold, "with all weights multiplied by 4")
    return "a common factor of all weights changes nothing"


def _weight_pull(subject: Subject) -> str:
    light, heavy = (_after(subject, _one_aside(weight)) for weight in (1, 6))
    one, other = (_aside(client, light) for client in (HEAVY, HEAVY + 1))
    # Towards the reply whose weight was raised, summed over all parameters: a clipped update keeps this sign, too.
    moved, way = ({name: a[name] - b[name] for name in light} for a, b in ((heavy, light), (one, other)))
    length = math.sqrt(_product(moved, moved) * _product(way, way))
    # Behind an adaptive step or a bound on norms numbers move apart a little; a wrong sign moves all of them.
    if length and (cosine := _product(moved, way) / length) < -AWAY:
        raise Broken(
            f"the result moves away from a reply whose weight is raised from 1 to 6 (cosine of the angle {cosine:.2f})"
        )
    used = any((light[name] != heavy[name]).any() for name in light)
    return "more weight, more pull" if used else "weights are not used"


def _order(subject: Subject) -> str:
    expected = subject.course[0].model
    for order in ORDERS:
        _same(expected, _after(subject, trained, order), "with the replies in another order")
    return "the result does not depend on it"


def _private(subject: Subject) -> str:
    for stage in subject.course:
        if stage.private and (changed := first_change(stage.before, stage.model, stage.private)):
            raise Broken(f"round {stage.number}: '{changed}' is private and has changed")
    return "bit for bit as they were"


def _resume(subject: Subject) -> str:
    whole = subject.trial()
    state_arrays(whole.partial)  # a state that no checkpoint holds is refused before the first round, too
    for stop in range(1, ROUNDS):
        whole.round(stop)
        second = subject.trial(whole.arrays, deepcopy(state_arrays(whole.partial))).rounds(stop + 1, ROUNDS)
        if changed := first_change(subject.trained, second.model):
            raise Broken(f"'{changed}' differs after a run that was resumed after round {stop}")
    return f"after rounds 1 to {ROUNDS - 1}: equal bit for bit"


def _one_lost(subject: Subject) -> str:
    trial = subject.trial()
    skipped = False
    for number in range(1, ROUNDS + 1):
        trial.round(number, lambda k, r, sent: None if k == LOST else trained(k, r, sent))
        skipped = skipped or trial.probe.returned is None
    return "its rounds are skipped" if skipped else "the others are aggregated"


def _all_lost(subject: Subject) -> str:
    trial = subject.trial()
    trial.round(1)
    for number in (2, 3):
        before = trial.model
        trial.round(number, lambda k, r, sent: None)
        if changed := first_change(before, trial.model):
            raise Broken(f"'{changed}' has changed in a round without any reply")
    return "the model stays as it was"


def _evaluation(subject: Subject) -> str:
    found = subject.trial().evaluate(1)
    value = None if found is None else found.get("hr@10")
    if not isinstance(value, int | float):
        raise Broken("the clients' metric 'hr@10' is not in the result")
    if not 0.0 <= value <= (CLIENTS - 1) / 10:
        raise Broken(f"'hr@10' is {value}, outside of what the clients reported (0 to {(CLIENTS - 1) / 10})")
    return "metrics come back under their names"


FIRST: Mapping[str, Callable[[Subject], str]] = {
    "runs": _runs,
    "names are kept": _names,
    "shapes and types are kept": _shapes,
    "results are finite": _finite,
}
THEN: Mapping[str, Callable[[Subject], str]] = {
    "weights: common factor": _weight_scale,
    "weights: direction": _weight_pull,
    "order of the replies is irrelevant": _order,
    "private groups are untouched": _private,
    "resuming equals going on": _resume,
    "one lost reply is tolerated": _one_lost,
    "a round without replies": _all_lost,
    "evaluation": _evaluation,
    **CLAIMS,
}


def _after(subject: Subject, client: Client, order: Sequence[int] | None = None) -> Values:
    """Return the model after one round."""
    trial = subject.trial()
    trial.round(1, client, order)
    return trial.model


def _weighted(factor: int) -> Client:
    def client(k: int, server_round: int, sent: Values) -> tuple[Values, int]:
        moved, weight = trained(k, server_round, sent)
        return moved, factor * weight

    return client


def _one_aside(weight: int) -> Client:
    def client(k: int, server_round: int, sent: Values) -> tuple[Values, int]:
        return _aside(k, sent), weight if k == HEAVY else 1

    return client


def _aside(client: int, sent: Values) -> Values:
    """All clients move alike but for one, which stands aside."""
    moved: Values = {}
    for position, (name, value) in enumerate(sent.items()):
        common, aside = np.random.default_rng(position).normal(scale=0.1, size=(2, *value.shape))
        moved[name] = np.asarray(value + common + (aside if client == HEAVY else 0.0), np.float32)
    return moved


def _product(one: Values, other: Values) -> float:
    return sum(float((one[name].astype(np.float64) * other[name]).sum()) for name in one)


def _same(one: Values, other: Values, when: str) -> None:
    for name, array in one.items():
        difference = float(np.abs(array - other[name]).max())
        if difference > _slack(array):
            raise Broken(f"'{name}' differs by {difference:.3g} {when}")


def _slack(array: np.ndarray) -> float:
    """Return how much rounding may change."""
    return 1e-5 * (1.0 + float(np.abs(array).max()))
