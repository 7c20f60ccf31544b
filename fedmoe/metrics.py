"""Metrics of one's own: ``evaluation.metrics`` names them, each by ``package.module:Class``.

A ``Metric`` is a number of one user's rank, of which a run reports the mean over all users: measured wherever HR@K and
NDCG@K are, by every client, with its own parameters and with the server's, and for popularity. A ``CatalogueMetric`` is
a number of the lists of items that all users are shown, which the server has to see.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedmoe.components import Kind
from fedmoe.errors import FedMoEError
from fedmoe.settings import EvaluationSettings, Settings

LISTS = "lists"  # the record of a reply that holds what users are shown
_TAKEN = ("rank", "num-examples", "hr@", "ndcg@", "global-")  # what a metric's name may not begin with


class AnyMetric:
    """What both kinds have in common: the constructor takes ``evaluation.metric_parameters.NAME``."""


class Metric(AnyMetric, ABC):
    """The base of a metric of one user's rank."""

    @abstractmethod
    def of(self, rank: float) -> float:
        """Return the metric of one held-out item by its rank, from 1; a tie counts half, so it may end in .5."""


class CatalogueMetric(AnyMetric, ABC):
    """The base of a metric of what all users are shown. length: K, the items of a user's list."""

    length = 10

    @abstractmethod
    def of(self, lists: NDArray[np.int64], num_items: int) -> float:
        """Return the metric of the users' lists ``[users, K]`` of item ids 1 to ``num_items``, the best one first."""


def own_metrics(evaluation: EvaluationSettings) -> Mapping[str, Metric]:
    """Return the metrics of a rank that the settings name, by their names. FedMoEError: one cannot be made."""
    return {name: each for name, each in _all(evaluation).items() if isinstance(each, Metric)}


def catalogue_metrics(settings: Settings) -> Mapping[str, CatalogueMetric]:
    """Return the metrics of lists that the settings name, by their names.

    Raises FedMoEError if one cannot be made, or if the settings hide or lack the lists that it needs.
    """
    found = {name: each for name, each in _all(settings.evaluation).items() if isinstance(each, CatalogueMetric)}
    for name in found:
        needs = f"evaluation.metrics.{name} needs the items that each user is shown"
        if settings.privacy.on or settings.privacy.sum_bits:
            raise FedMoEError(f"{needs}, which differential privacy and sums hide from the server: leave it out")
        if settings.evaluation.protocol != "full":
            raise FedMoEError(f"{needs}, of the whole catalogue: set evaluation.protocol to full")
    return found


def list_length(settings: Settings) -> int:
    """Return how many items of a list the metrics need; 0: none."""
    return max((each.length for each in catalogue_metrics(settings).values()), default=0)


def _all(evaluation: EvaluationSettings) -> Mapping[str, AnyMetric]:
    return _made(evaluation.model_dump_json()) if evaluation.metrics else {}


@lru_cache(maxsize=4)
def _made(document: str) -> dict[str, AnyMetric]:
    evaluation = EvaluationSettings.model_validate_json(document)
    found = {}
    for name, component in evaluation.metrics.items():
        if name.startswith(_TAKEN):
            raise FedMoEError(f"evaluation.metrics.{name}: this name is taken - choose another")
        found[name] = metric_kind(name).build(component, evaluation.metric_parameters.get(name, {}))
    return found


def metric_kind(name: str) -> Kind[AnyMetric]:
    """Return the kind of component that the metric with this name in the settings is."""
    return Kind(f"evaluation.metrics.{name}", f"evaluation.metric_parameters.{name}", AnyMetric, {})
