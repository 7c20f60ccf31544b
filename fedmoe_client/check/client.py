"""What is asked of a client of one's own, each demand a function that looks at what came of a trial."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from data.sampling import training_part
from fedmoe.check.command import Broken, Demands, Finding, findings, in_words
from fedmoe.wire import NamedArrays
from fedmoe_client.check.alike import alone, chance, resume, stack
from fedmoe_client.check.made_up import CLIENTS, ROUNDS, Subject, made_up_settings
from fedmoe_client.learning.own_client import CLIENTS as KIND
from fedmoe_client.learning.own_client import TABLE, OwnClient

HOOKS = tuple(name for name, each in vars(OwnClient).items() if inspect.isfunction(each))


def client_findings(name: str, parameters: Mapping[str, Any]) -> list[Finding]:
    """Try all demands. FedMoEError: the client cannot be made."""

    def make() -> OwnClient:
        return KIND.build(name, parameters)

    make()
    return findings(FIRST, THEN, Subject(made_up_settings(name, parameters), make))


def _hooks(subject: Subject) -> str:
    cls, base = type(subject.make()), OwnClient
    own = [hook for hook in HOOKS if getattr(cls, hook) is not getattr(base, hook)]
    for hook in own:
        wanted = list(inspect.signature(getattr(base, hook)).parameters)
        try:
            inspect.signature(getattr(cls, hook)).bind(*wanted)
        except TypeError:
            raise Broken(f"{hook} is called as {hook}({', '.join(wanted[1:])}): give it these arguments") from None
    public = {
        name for each in cls.__mro__ for name in vars(each) if issubclass(each, base) and not name.startswith("_")
    }
    for name in sorted(public - set(HOOKS)):
        if (like := get_close_matches(name, set(HOOKS) - set(own), n=1, cutoff=0.8)) and callable(getattr(cls, name)):
            raise Broken(f"{name} is never called: did you mean the hook '{like[0]}'?")
    return ", ".join(own) or "none of its own"


def _runs(subject: Subject) -> str:
    for visit in subject.visits:
        if visit.error is None or visit.watched.gave is not None:  # what comes after the hooks is another demand's
            continue
        hint = ""
        if isinstance(visit.error, KeyError):
            hint = "; if it is something that the strategy sends, return one like it from example_extra"
        raise Broken(f"round {visit.number}: {in_words(visit.error)}{hint}")
    return f"{ROUNDS} rounds of {CLIENTS} clients, of which the later ones share embedding and backbone"


def _names(subject: Subject) -> str:
    for visit in subject.visits:
        given, gave = visit.watched.given, visit.watched.gave
        if not visit.watched.asked:
            break  # a hook raised
        if not isinstance(gave, dict):
            raise Broken(f"sent returns {type(gave).__name__}: return a dictionary of arrays like the one it is given")
        if missing := [name for name in given if name not in gave]:
            raise Broken(f"round {visit.number}: sent leaves out '{missing[0]}': return all arrays that it is given")
        if added := [name for name in gave if name not in given]:
            raise Broken(
                f"round {visit.number}: sent adds '{added[0]}': what goes beside the model belongs into this.reply"
            )
        if list(gave) != list(given):
            raise Broken("sent returns the arrays in another order: keep that of what it is given")
    return "those of the shared parameters"


def _shapes(subject: Subject) -> str:
    for visit in subject.visits:
        for name, array in (visit.watched.gave or {}).items():
            like = visit.watched.given[name]
            if not isinstance(array, np.ndarray | np.generic):
                raise Broken(f"round {visit.number}: '{name}' is a {type(array).__name__}: send NumPy arrays")
            if array.shape != like.shape:
                shapes = f"{list(array.shape)}, expected {list(like.shape)}"
                raise Broken(f"round {visit.number}: '{name}' has the shape {shapes}")
            if array.dtype != like.dtype:
                raise Broken(f"round {visit.number}: '{name}' is {array.dtype}: make it {like.dtype} again")
    return "as they were given"


def _finite(subject: Subject) -> str:
    for visit in subject.visits:
        for name, array in (visit.watched.gave or {}).items():
            if not np.isfinite(array).all():
                raise Broken(f"round {visit.number}: '{name}' has a value that is not finite")
    return "no NaN, no infinity"


def _kept(subject: Subject) -> str:
    size = 0
    for visit in subject.visits:
        for name, value in visit.kept.items():
            array = np.asarray(value)
            if not (isinstance(value, np.ndarray | np.generic | int | float) and array.dtype.kind in "biufc"):
                raise Broken(f"this.kept['{name}'] is a {type(value).__name__}: keep numeric arrays alone")
            if not np.isfinite(array).all():
                raise Broken(f"round {visit.number}: this.kept['{name}'] has a value that is not finite")
        size = max(size, sum(np.asarray(value).nbytes for value in visit.kept.values()))
    return f"numeric arrays, {size} bytes a client" if size else "nothing"


def _start(subject: Subject) -> str:
    for visit in subject.visits:
        assert visit.watched.this is not None
        for name, before in visit.watched.before.items():
            after = visit.watched.this.start.get(name)
            if after is None or after.tobytes() != before.tobytes():
                raise Broken(
                    f"round {visit.number}: this.start['{name}'] was changed, which other clients read too: copy it; "
                    "to train from other arrays call this.train(start) in after_round"
                )
    return "only read"


def _gradient(subject: Subject) -> str:
    if any(visit.watched.flat for visit in subject.visits):
        raise Broken("a term of the loss has no gradient: compute it from the parameters with torch, without detach")
    return "it follows from the parameters" if _overrides(subject, "loss") else "no term of its own"


def _private(subject: Subject) -> str:
    records: set[str] = set()
    for visit in subject.visits:
        this = visit.watched.this
        assert this is not None
        private = {name: array for name, array in visit.watched.trained.items() if name not in this.shared}
        history = set(training_part(subject.after.bench.dataset.interactions.history(visit.client)).tolist())
        for place, values in _numbers(visit.watched.gave or {}, this.reply):
            if place.rpartition("/")[2] in private:
                raise Broken(f"round {visit.number}: the reply holds {place}, which is private in this round")
            for name, array in private.items():
                if array.size > 1 and values.size == array.size and np.array_equal(values.ravel(), array.ravel()):
                    raise Broken(f"round {visit.number}: {place} in the reply is the private parameter '{name}'")
            if values.size >= len(history) and set(values.ravel().tolist()) == history:
                raise Broken(f"round {visit.number}: {place} in the reply is the client's history")
        records |= set(this.reply)
    named = ", ".join(sorted(records))
    return f"but for '{named}', which private and secure runs refuse" if named else "the shared parameters alone leave"


def _ranks(subject: Subject) -> str:
    trial = subject.after
    names: list[str] = []
    for client in range(CLIENTS):
        kept = trial.stored(client)
        found = trial.own.ranks_with(kept)
        for name, array in found.items():
            if name not in trial.bench.shapes:
                raise Broken(f"ranks_with returns '{name}', which is no parameter of the model")
            if tuple(np.shape(array)) != trial.bench.shapes[name]:
                whole = f"{list(np.shape(array))}, the parameter {list(trial.bench.shapes[name])}"
                raise Broken(f"ranks_with returns '{name}' of the shape {whole}: return whole arrays")
        names = list(found)
        metrics = trial.evaluate(client).metrics
        if not np.isfinite(list(metrics.values())).all():
            raise Broken("the client's own ranking has a figure that is not finite")
    return f"{len(names)} parameters of its own" if names else "the server's parameters"


FIRST: Demands[Subject] = {
    "hooks have the base's arguments": _hooks,
    "runs": _runs,
    "names are kept": _names,
    "shapes and types are kept": _shapes,
    "what is sent is finite": _finite,
    "what is kept can be stored": _kept,
}
THEN: Demands[Subject] = {
    "chance is the run's own": chance,
    "clients are apart": alone,
    "resuming equals going on": resume,
    "this.start is left alone": _start,
    "a term of the loss has a gradient": _gradient,
    "nothing private is sent": _private,
    "ranks with whole parameters": _ranks,
    "stacked or alone": stack,
}


def _overrides(subject: Subject, hook: str) -> bool:
    return getattr(type(subject.make()), hook) is not getattr(OwnClient, hook)


def _numbers(sent: NamedArrays, reply: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what a reply holds by its place, but for the ids of the item table's rows."""
    yield from ((f"'{name}'", array) for name, array in sent.items() if not name.startswith(TABLE))
    for name, record in reply.items():
        for key, value in record.items():
            array = value.numpy() if isinstance(record, ArrayRecord) else np.asarray(value)
            yield f"'{name}/{key}'", array
