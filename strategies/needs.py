"""What a strategy needs to see of a round's replies: each of them, or their weighted mean."""

from __future__ import annotations

from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedmoe.errors import FedMoEError
from strategies.layers.layer import chain

_MEANS_ONLY = (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi, FedProx)
_COMPARING = (Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum, QFedAvg)


def needs_every_reply(strategy: Strategy) -> bool:
    """Return whether a strategy, or one that it wraps, must see each reply and not only their weighted mean.

    A class says so itself: ``needs_every_reply = False`` in its own body. What its base says does not count, since it
    may aggregate otherwise. Flower's classes on top of FedAvg's mean are known; an unknown class needs every reply, and
    so does one that was given a function for the metrics.
    """
    return any(_needs_every(part) for part in chain(strategy))


def _needs_every(strategy: Strategy) -> bool:
    says_so = "needs_every_reply" in vars(type(strategy)) or "needs_every_reply" in vars(strategy)
    own = getattr(strategy, "needs_every_reply", True) if says_so else type(strategy) not in _MEANS_ONLY
    metrics = getattr(strategy, "train_metrics_aggr_fn", aggregate_metricrecords)
    return bool(own) or metrics is not aggregate_metricrecords


def refuse_comparing(strategy: Strategy, why: str) -> None:
    """Raise FedMoEError for a strategy that compares the clients' own replies where it would see a single one.

    why: what hands it a single one. A class says so itself with ``compares_replies = True``; Flower's are known.
    """
    for part in chain(strategy):
        if isinstance(part, _COMPARING) or getattr(part, "compares_replies", False):
            raise FedMoEError(
                f"{why}: {type(part).__name__} compares the clients' updates, but would see their mean alone; "
                "use fedavg, fedavgm, fedadam, lazyadam, fedyogi, fedadagrad or fedprox"
            )
