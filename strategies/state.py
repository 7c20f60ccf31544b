"""What a strategy remembers between rounds: as named arrays for a checkpoint, and when its parameters change.

A key is ``place/class/attribute/container/position/type/name``. The place is that of the strategy among what it wraps,
0 is the outermost; layers without state do not count. A dict, list or record has a key for each of its entries; the
position keeps their order, which Flower relies on, and the type tells a Python float from a NumPy one: NumPy rounds
differently with them.

State that is kept by parameter, such as FedAdam's ``m_t`` and ``v_t``, is made in the first round for the parameters of
that round: FedAdam raises KeyError for one that is gone. When the shared parameters change, such state is narrowed to
those still there and widened with zeros, their value in a fresh strategy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError
from strategies.layers.layer import Round, Stateless, chain

Shapes = Mapping[str, tuple[int, ...]]
MODEL = "current_arrays"  # Flower's name for a strategy's copy of the model: taken anew, not widened with zeros
_SETTINGS = (str, bytes, Enum, PurePath, Round, Strategy)


def state_arrays(strategy: Strategy) -> dict[str, np.ndarray]:
    """Return copies of the numeric state of ``strategy`` and of what it wraps, under stable keys.

    State are the attributes that are numbers, arrays, ArrayRecords, and dicts (by str), lists and tuples of numbers and
    arrays. None, text, functions and empty containers are not. A strategy that has ``state_dict()`` and
    ``load_state_dict()`` is asked for its own part instead.

    Raises FedMoEError naming an attribute of any other kind: it would be lost with a checkpoint. Call this before the
    first round to find out early.
    """
    state = {}
    for place, part in enumerate(_stateful(strategy)):
        for key, value in _own_state(part):
            state[f"{place}/{type(part).__name__}/{key}"] = np.array(value)
    return state


def load_state_arrays(strategy: Strategy, state: Mapping[str, np.ndarray]) -> None:
    """Give ``strategy`` the state that :func:`state_arrays` returned for it, or for one built alike, at another time.

    A container that was empty by then is emptied.
    Raises FedMoEError if the state belongs to other strategies.
    """
    parts = _stateful(strategy)
    collected: list[dict[str, dict[str, np.ndarray]]] = [{} for _ in parts]
    for key in sorted(state):
        place, class_name, attribute, rest = key.split("/", 3)
        index = int(place)
        if index >= len(parts) or type(parts[index]).__name__ != class_name:
            have = " > ".join(type(part).__name__ for part in chain(strategy))
            raise FedMoEError(
                f"the checkpoint holds the state of strategy {class_name} ({attribute}), this run uses {have}; "
                f"resume with the strategy of the checkpoint"
            )
        collected[index].setdefault(attribute, {})[rest] = state[key]
    for part, attributes in zip(parts, collected, strict=True):
        _load_own_state(part, attributes)


def _stateful(strategy: Strategy) -> list[Strategy]:
    return [part for part in chain(strategy) if not isinstance(part, Stateless)]


def _own_state(part: Strategy) -> Iterator[tuple[str, Any]]:
    """Yield (attribute/container/position/type/name, number or array)."""
    if _keeps_its_own(part):
        for name, value in part.state_dict().items():  # type: ignore[attr-defined]
            yield f"state_dict/dict/000000/array/{name}", value
        return
    for attribute, value in sorted(vars(part).items()):
        if value is None or isinstance(value, _SETTINGS) or callable(value):
            continue
        entries = _entries(value)
        if entries is None:
            raise FedMoEError(
                f"strategy {type(part).__name__} keeps '{attribute}' ({type(value).__name__}), which a checkpoint "
                f"cannot hold; give the class the methods state_dict() and load_state_dict()"
            )
        for key, entry in entries:
            yield f"{attribute}/{key}", entry


def _load_own_state(part: Strategy, attributes: dict[str, dict[str, np.ndarray]]) -> None:
    if _keeps_its_own(part):
        entries = attributes.get("state_dict", {})
        part.load_state_dict({key.split("/", 3)[3]: np.array(value) for key, value in entries.items()})  # type: ignore[attr-defined]
        return
    for attribute, value in list(vars(part).items()):
        if isinstance(value, dict | list | ArrayRecord) and _entries(value) and attribute not in attributes:
            setattr(part, attribute, type(value)())
    for attribute, entries in attributes.items():
        setattr(part, attribute, _value(entries))


def _keeps_its_own(part: Strategy) -> bool:
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")


def _entries(value: Any) -> list[tuple[str, Any]] | None:
    """Return (container/position/type/name, number or array) for an attribute's value; None if it cannot be held."""
    if isinstance(value, ArrayRecord):
        container, items = "record", [(name, array.numpy()) for name, array in value.items()]
    elif isinstance(value, dict) and all(isinstance(name, str) for name in value):
        container, items = "dict", list(value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        container, items = type(value).__name__, [("", entry) for entry in value]
    elif isinstance(value, dict):
        return None if value else []
    else:
        container, items = "value", [("", value)]
    if all(isinstance(entry, str) or entry is None for _, entry in items):
        return []  # names: a setting
    kinds = [_type(entry) for _, entry in items]
    if None in kinds or container in ("set", "frozenset"):
        return None  # a set has no order to restore
    places = zip(items, kinds, strict=True)
    return [(f"{container}/{i:06d}/{kind}/{name}", entry) for i, ((name, entry), kind) in enumerate(places)]


def _type(entry: Any) -> str | None:
    if isinstance(entry, np.ndarray | np.generic) and entry.dtype.kind in "biuf":
        return "array" if isinstance(entry, np.ndarray) else "scalar"
    if type(entry) is int and not -(2**63) <= entry < 2**63:
        return None  # no NumPy integer holds it
    return type(entry).__name__ if type(entry) in (bool, int, float) else None


def _value(entries: dict[str, np.ndarray]) -> Any:
    """Return the value of an attribute from its entries, which are sorted by position."""
    keys = [key.split("/", 3) for key in entries]
    container, names = keys[0][0], [name for _, _, _, name in keys]
    values = [_entry(kind, array) for (_, _, kind, _), array in zip(keys, entries.values(), strict=True)]
    if container == "value":
        return values[0]
    if container == "list":
        return values
    if container == "tuple":
        return tuple(values)
    if container == "record":
        return ArrayRecord({name: Array(array) for name, array in zip(names, values, strict=True)})
    return dict(zip(names, values, strict=True))


def _entry(kind: str, array: np.ndarray) -> Any:
    if kind == "array":
        return np.array(array)
    return array[()] if kind == "scalar" else array.item()


def change_parameters(strategy: Strategy, old: Shapes, shared: ArrayRecord) -> None:
    """Fit the state of ``strategy`` and of what it wraps to the parameters ``shared``.

    old: name -> shape of the parameters so far, in their order.
    shared: the parameters from now on, with the model's values.

    Fitted are: an ArrayRecord or a dict whose names are exactly the old ones, and a list with one array of the right
    shape for each of them. Everything else is left alone.
    """
    for part in chain(strategy):
        for attribute, value in list(vars(part).items()):
            fitted = _model(value, shared) if attribute == MODEL else _fitted(value, old, shared)
            if fitted is not None:
                setattr(part, attribute, fitted)


def _model(value: Any, shared: ArrayRecord) -> Any:
    if isinstance(value, ArrayRecord) and value:
        return shared.copy()
    if isinstance(value, dict) and value:
        return {name: array.numpy() for name, array in shared.items()}
    return None


def _fitted(value: Any, old: Shapes, shared: ArrayRecord) -> Any:
    """Return what becomes of an attribute's value; None if it is not kept by parameter."""
    zeros = {name: np.zeros(array.shape, array.dtype) for name, array in shared.items()}
    if isinstance(value, ArrayRecord) and value.keys() == old.keys():
        return ArrayRecord({name: value.get(name) or Array(zero) for name, zero in zeros.items()})
    if isinstance(value, dict) and value.keys() == old.keys() and _match(list(value.values()), list(old.values())):
        return {name: value.get(name, zero) for name, zero in zeros.items()}
    if isinstance(value, list) and value and _match(value, list(old.values())):
        by_name = dict(zip(old, value, strict=True))
        return [by_name.get(name, zero) for name, zero in zeros.items()]
    return None


def _match(values: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether there is one array (or NumPy number, for shape ()) of the right shape for each parameter."""
    return len(values) == len(shapes) and all(
        isinstance(value, np.ndarray | np.generic) and value.shape == shape
        for value, shape in zip(values, shapes, strict=True)
    )
