"""Strategies by name, with their arguments checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedmoe.components import Kind
from fedmoe.errors import FedMoEError
from strategies.rules.lazy_adam import LazyAdam
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
    "lazyadam": LazyAdam,
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
WRAPPED = "strategy"  # the argument of a wrapper that names what it wraps
_KIND = Kind(
    "federation.strategy",
    "federation.strategy_parameters",
    Strategy,  # type: ignore[type-abstract]  # the base is only asked for its subclasses
    {**STRATEGIES, **WRAPPERS},
    # The cohort is chosen outside; the strategy takes all of it.
    {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
        "train_loss_key": "loss",  # q-FedAvg: the name under which the clients report their loss
    },
)


def build_strategy(name: str, parameters: Mapping[str, Any]) -> Strategy:
    """Return the strategy ``name``, built with ``parameters``.

    name: a key of STRATEGIES or WRAPPERS, or ``package.module:Class``.

    An argument named ``strategy``, as Flower's differential-privacy wrappers take it, is itself a name, or a mapping of
    ``name`` and its parameters; FedAvg, if it is not given.

    Raises FedMoEError for an unknown name, a class that is not a Message-API strategy, and, all at once, for unknown,
    missing and mistyped parameters; also for what the constructor itself refuses.
    """
    if WRAPPED in _KIND.takes(name):
        parameters = {**parameters, WRAPPED: _wrapped(name, parameters.get(WRAPPED, "fedavg"))}
    return _KIND.build(name, parameters)


def _wrapped(name: str, value: Any) -> Strategy:
    if isinstance(value, str):
        return build_strategy(value, {})
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return build_strategy(value["name"], {key: entry for key, entry in value.items() if key != "name"})
    raise FedMoEError(
        f"{_KIND.arguments} of {name}: 'strategy' must be a name, or a mapping with 'name' and its parameters"
    )
