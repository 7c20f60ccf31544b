"""A strategy's own state that is kept by parameter, when the set of parameters changes.

FedAdam's ``m_t`` and ``v_t``, FedAvgM's ``momentum_vector`` and the like are made in the first round for the parameters
of that round: FedAdam raises KeyError for one that is gone. Here such state is narrowed to the parameters still there
and widened with zeros, their value in a fresh strategy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from strategies.layers.wrapper import chain

Shapes = Mapping[str, tuple[int, ...]]
MODEL = "current_arrays"  # Flower's name for a strategy's copy of the model: taken anew, not widened with zeros


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
    if isinstance(value, ArrayRecord) and value.keys() == old.keys():
        return ArrayRecord({name: value.get(name) or Array(_zeros(array)) for name, array in shared.items()})
    if isinstance(value, dict) and value.keys() == old.keys() and _match(list(value.values()), list(old.values())):
        return {name: value[name] if name in value else _zeros(array) for name, array in shared.items()}
    if isinstance(value, list) and value and _match(value, list(old.values())):
        by_name = dict(zip(old, value, strict=True))
        return [by_name[name] if name in by_name else _zeros(array) for name, array in shared.items()]
    return None


def _match(values: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether there is one array (or NumPy number, for shape ()) of the right shape for each parameter."""
    return len(values) == len(shapes) and all(
        isinstance(value, np.ndarray | np.generic) and value.shape == shape
        for value, shape in zip(values, shapes, strict=True)
    )


def _zeros(array: Array) -> np.ndarray:
    return np.zeros(array.shape, dtype=array.dtype)
