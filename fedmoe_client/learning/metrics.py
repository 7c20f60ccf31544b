"""A metric of one's own: a number of one user's rank, of which a run reports the mean over all users.

``evaluation.metrics`` names them, each by ``package.module:Class``. They are measured wherever HR@K and NDCG@K are: by
every client, with its own parameters and with the server's, and for popularity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache

from fedmoe.components import Kind
from fedmoe.errors import FedMoEError
from fedmoe.settings import EvaluationSettings

_TAKEN = ("rank", "num-examples", "hr@", "ndcg@", "global-")  # what a metric's name may not begin with


class Metric(ABC):
    """The base of a metric of one's own; its constructor takes ``evaluation.metric_parameters.NAME``."""

    @abstractmethod
    def of(self, rank: float) -> float:
        """Return the metric of one held-out item by its rank, from 1; a tie counts half, so it may end in .5."""


def own_metrics(evaluation: EvaluationSettings) -> Mapping[str, Metric]:
    """Return the metrics that the settings name, by their names. FedMoEError: one cannot be made."""
    return _made(evaluation.model_dump_json()) if evaluation.metrics else {}


@lru_cache(maxsize=4)
def _made(document: str) -> dict[str, Metric]:
    evaluation = EvaluationSettings.model_validate_json(document)
    found = {}
    for name, component in evaluation.metrics.items():
        if name.startswith(_TAKEN):
            raise FedMoEError(f"evaluation.metrics.{name}: this name is taken - choose another")
        found[name] = metric_kind(name).build(component, evaluation.metric_parameters.get(name, {}))
    return found


def metric_kind(name: str) -> Kind[Metric]:
    """Return the kind of component that the metric with this name in the settings is."""
    return Kind(f"evaluation.metrics.{name}", f"evaluation.metric_parameters.{name}", Metric, {})  # type: ignore[type-abstract]
