"""What is asked of a strategy, each demand a function that tries it out on made-up replies.

Partial aggregation is around the strategy in all of them, and the replies have passed its guards. Not asked is that
weights count in proportion: medians, Krum and q-FedAvg use them otherwise, or not at all.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fedmoe.check.command import Broken, Finding, in_words
from fedmoe.check.command import findings as tried
from strategies.check.claims import CLAIMS, Make
from strategies.check.made_up import CLIENTS, ROUNDS, WARMUP_ROUNDS, Client, Trial, Values, first_change, trained
from strategies.state import state_arrays

ORDERS: Sequence[Sequence[int]] = ([7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1, 7, 5, 2, 4])
LOST = 2  # the client whose reply is lost
AWAY = 0.5  # how far the result may turn from a reply that gains weight
HEAVY = 3  # the client whose weight is raised


def findings(make: Make) -> list[Finding]:
    """Try all demands on strategies that ``make`` builds, a fresh one for each."""
    # q-FedAvg, Krum and Bulyan collect garbage at every reply; what is there by now need not be looked through again.
    gc.freeze()
    try:
        return tried(FIRST, THEN, make)
    finally:
        gc.unfreeze()


def _runs(make: Make) -> str:
    for trial, number in _rounds(make):
        if (raised := trial.probe.raised) is not None:
            hint = (
                "; if it is a record of its clients' replies, say what these add: example_records = "
                '{"record": {"metric": 1.0}} in the class'
            )
            raise Broken(f"round {number}: {in_words(raised)}{hint if isinstance(raised, KeyError) else ''}")
        if trial.probe.returned is None:
            raise Broken(f"round {number}: nothing was aggregated, though all {CLIENTS} clients replied")
    return f"{ROUNDS} rounds of {CLIENTS} clients, the shared groups changing after round {WARMUP_ROUNDS}"


def _names(make: Make) -> str:
    for trial, number in _rounds(make):
        if trial.probe.returned is None:
            continue
        shared = set(trial.partial.schedule.shared_names(number))
        if missing := sorted(shared - trial.probe.returned.keys()):
            raise Broken(f"round {number}: no '{missing[0]}' in the result")
        if added := sorted(trial.probe.returned.keys() - shared):
            raise Broken(f"round {number}: '{added[0]}' in the result is not shared")
    return "the result has the shared parameters' names"


def _shapes(make: Make) -> str:
    for trial, number in _rounds(make):
        for name, array in (trial.probe.returned or {}).items():
            wanted = tuple(trial.arrays[name].shape) or (1,) if name in trial.arrays else tuple(array.shape)
            if tuple(array.shape) != wanted:
                raise Broken(f"round {number}: '{name}' has shape {list(array.shape)}, expected {list(wanted)}")
            if np.dtype(array.dtype).kind != "f":
                raise Broken(f"round {number}: '{name}' is {array.dtype}, expected a floating-point type")
    return "shapes as they were, floating-point numbers"


def _finite(make: Make) -> str:
    for trial, number in _rounds(make):
        for name, array in (trial.probe.returned or {}).items():
            if np.dtype(array.dtype).kind == "f" and not np.isfinite(array.numpy()).all():
                raise Broken(f"round {number}: '{name}' has a value that is not finite")
    return "no NaN, no infinity"


def _weight_scale(make: Make) -> str:
    once, fourfold = (_after(make, _weighted(factor)) for factor in (1, 4))
    _same(once, fourfold, "with all weights multiplied by 4")
    return "a common factor of all weights changes nothing"


def _weight_pull(make: Make) -> str:
    light, heavy = (_after(make, _one_aside(weight)) for weight in (1, 6))
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


def _order(make: Make) -> str:
    expected = _after(make, trained)
    for order in ORDERS:
        _same(expected, _after(make, trained, order), "with the replies in another order")
    return "the result does not depend on it"


def _private(make: Make) -> str:
    trial = Trial(make())
    for number in range(1, ROUNDS + 1):
        private, before = trial.partial.schedule.private_names(number), trial.model
        trial.round(number)
        if private and (changed := first_change(before, trial.model, private)):
            raise Broken(f"round {number}: '{changed}' is private and has changed")
    return "bit for bit as they were"


def _resume(make: Make) -> str:
    whole = Trial(make())
    state_arrays(whole.partial)  # a state that no checkpoint holds is refused before the first round, too
    whole.rounds(1, ROUNDS)
    for stop in range(1, ROUNDS):
        first = Trial(make()).rounds(1, stop)
        second = Trial(make(), first.arrays, state_arrays(first.partial)).rounds(stop + 1, ROUNDS)
        if changed := first_change(whole.model, second.model):
            raise Broken(f"'{changed}' differs after a run that was resumed after round {stop}")
    return f"after rounds 1 to {ROUNDS - 1}: equal bit for bit"


def _one_lost(make: Make) -> str:
    trial = Trial(make())
    skipped = False
    for number in range(1, ROUNDS + 1):
        trial.round(number, lambda k, r, sent: None if k == LOST else trained(k, r, sent))
        skipped = skipped or trial.probe.returned is None
    return "its rounds are skipped" if skipped else "the others are aggregated"


def _all_lost(make: Make) -> str:
    trial = Trial(make())
    trial.round(1)
    for number in (2, 3):
        before = trial.model
        trial.round(number, lambda k, r, sent: None)
        if changed := first_change(before, trial.model):
            raise Broken(f"'{changed}' has changed in a round without any reply")
    return "the model stays as it was"


def _evaluation(make: Make) -> str:
    found = Trial(make()).evaluate(1)
    value = None if found is None else found.get("hr@10")
    if not isinstance(value, int | float):
        raise Broken("the clients' metric 'hr@10' is not in the result")
    if not 0.0 <= value <= (CLIENTS - 1) / 10:
        raise Broken(f"'hr@10' is {value}, outside of what the clients reported (0 to {(CLIENTS - 1) / 10})")
    return "metrics come back under their names"


FIRST: Mapping[str, Callable[[Make], str]] = {
    "runs": _runs,
    "names are kept": _names,
    "shapes and types are kept": _shapes,
    "results are finite": _finite,
}
THEN: Mapping[str, Callable[[Make], str]] = {
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


def _rounds(make: Make) -> Iterator[tuple[Trial, int]]:
    """Yield the trial after each round, up to the first that the strategy spoilt."""
    trial, failed = Trial(make()), False
    for number in range(1, ROUNDS + 1):
        try:
            trial.round(number)
        except Exception:
            if trial.probe.raised is None and trial.probe.returned is None:
                raise
            failed = True
        yield trial, number
        if failed:
            return


def _after(make: Make, client: Client, order: Sequence[int] | None = None) -> Values:
    """Return the model after one round."""
    trial = Trial(make())
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
