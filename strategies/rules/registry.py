"""Strategies by name, with their arguments checked before anything runs."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError, nearest
from strategies.rules.robust_rows import RobustRows
from strategies.rules.row_wise import RowWise

STRATEGIES: Mapping[str, type[Strategy]] = {
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "fedadagrad": flower.FedAdagrad,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedprox": flower.FedProx,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
    "qfedavg": flower.QFedAvg,
    "rowwise": RowWise,
}
# Around another strategy: Flower's differential privacy (the settings of `privacy` use PrivateUpdates), and ours.
WRAPPERS: Mapping[str, type[Strategy]] = {
    "robust-rows": RobustRows,
    "dp-server-fixed": flower.DifferentialPrivacyServerSideFixedClipping,
    "dp-server-adaptive": flower.DifferentialPrivacyServerSideAdaptiveClipping,
    "dp-client-fixed": flower.DifferentialPrivacyClientSideFixedClipping,
    "dp-client-adaptive": flower.DifferentialPrivacyClientSideAdaptiveClipping,
}
# Set where the constructor takes them and the user did not: the cohort is chosen outside, the strategy takes all of it.
_DEFAULTS: Mapping[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
    "train_loss_key": "loss",  # q-FedAvg: the name under which the clients report their loss
    "strategy": "fedavg",  # what a wrapper wraps
}
_WHERE = "federation.strategy_parameters"


def build_strategy(name: str, parameters: Mapping[str, Any]) -> Strategy:
    """Return the strategy ``name``, built with ``parameters``.

    name: a key of STRATEGIES or WRAPPERS, or ``package.module:Class``.

    An argument named ``strategy``, as Flower's differential-privacy wrappers take it, is itself a name, or a mapping of
    ``name`` and its parameters; FedAvg, if it is not given.

    Raises FedMoEError for an unknown name, a class that is not a Message-API strategy, and, all at once, for unknown,
    missing and mistyped parameters; also for what the constructor itself refuses.
    """
    cls = _strategy_class(name)
    signature = inspect.signature(cls)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    named = {p.name: p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    faults = [f"unknown '{key}'{nearest(key, named)}" for key in parameters if key not in named and not takes_any]
    arguments = {key: value for key, value in _DEFAULTS.items() if key in named} | dict(parameters)
    faults += [f"'{key}' is missing" for key, p in named.items() if p.default is p.empty and key not in arguments]
    faults += _wrong_types(cls, parameters)
    if faults:
        raise FedMoEError(f"{_WHERE} of {name}: {'; '.join(faults)} (it takes {', '.join(named) or 'none'})")
    if "strategy" in named and "strategy" in arguments:
        arguments["strategy"] = _wrapped(name, arguments["strategy"])
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise FedMoEError(f"{_WHERE} of {name}: {' '.join(str(error).split())}") from error


def _wrapped(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return build_strategy(value, {})
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return build_strategy(value["name"], {key: entry for key, entry in value.items() if key != "name"})
    raise FedMoEError(f"{_WHERE} of {name}: 'strategy' must be a name, or a mapping with 'name' and its parameters")


def _strategy_class(name: str) -> type[Strategy]:
    by_name = {**STRATEGIES, **WRAPPERS}
    if name in by_name:
        return by_name[name]
    where = f"federation.strategy '{name}'"
    module_name, colon, class_name = name.partition(":")
    if not (colon and module_name and class_name):
        raise FedMoEError(
            f"{where} is not known{nearest(name, by_name)}; "
            f"use one of {', '.join(by_name)}, or package.module:Class for one's own"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: whatever its import raises, say which one and why
        raise FedMoEError(f"{where}: cannot import {module_name}: {type(error).__name__}: {error}") from error
    cls = getattr(module, class_name, None)
    if cls is None:
        raise FedMoEError(f"{where}: {module_name} has no '{class_name}'{nearest(class_name, vars(module))}")
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        raise FedMoEError(f"{where}: not a subclass of flwr.serverapp.strategy.Strategy, derive it from one")
    if inspect.isabstract(cls):
        raise FedMoEError(f"{where}: the methods {', '.join(sorted(cls.__abstractmethods__))} are missing")
    return cls


def _wrong_types(cls: type[Strategy], parameters: Mapping[str, Any]) -> list[str]:
    """Check numbers, texts and switches; YAML reads 1e-6 as text, which would fail in the first aggregation only."""
    try:
        hints = get_type_hints(cls.__init__)
    except (NameError, TypeError):
        return []  # hints that cannot be resolved check nothing
    faults = []
    for key, value in parameters.items():
        wanted = hints.get(key)
        if wanted is float and not (type(value) in (int, float) and math.isfinite(value)):
            hint = ", write 1.0e-6 for 1e-6" if isinstance(value, str) else ""
            faults.append(f"'{key}' must be a number, is {value!r}{hint}")
        elif wanted is int and type(value) is not int:
            faults.append(f"'{key}' must be a whole number, is {value!r}")
        elif wanted is bool and type(value) is not bool:
            faults.append(f"'{key}' must be true or false, is {value!r}")
        elif wanted is str and not isinstance(value, str):
            faults.append(f"'{key}' must be text, is {value!r}")
    return faults
