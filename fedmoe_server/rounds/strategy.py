"""The strategy of a run: the one that the settings name, in the layers that every run has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from fedmoe_server.rounds.exchange import ReducingGrid
from strategies import (
    AggregationSchedule,
    Cohorts,
    OutlierClipping,
    PartialAggregation,
    PrivateUpdates,
    ServerLearningRate,
    build_strategy,
    needs_every_reply,
    private,
    secret_of,
)
from strategies.layers.layer import chain, weight_key
from strategies.layers.replies import NUM_EXAMPLES

if TYPE_CHECKING:
    from strategies.privacy.distributed import DistributedNoise
    from strategies.sums.layer import ExactSums


def aggregation_schedule(settings: Settings, groups: Mapping[str, Sequence[str]]) -> AggregationSchedule:
    """Return which groups' parameters are shared in which round."""
    federation = settings.federation
    return AggregationSchedule(groups, federation.warmup_rounds, federation.warmup, federation.shared)


def layered_strategy(
    settings: Settings,
    groups: Mapping[str, Sequence[str]],
    grid: Grid,
    client_ids: Callable[[Grid], Mapping[int, int]],
    deployed: bool,
) -> tuple[Cohorts, PartialAggregation, PrivateUpdates | DistributedNoise | None, ExactSums | None]:
    """Return the strategy with all its layers; of these the one that withholds groups, those of a private run and of
    exact sums.

    groups: the model's groups of parameters, each with its parameters' names. client_ids: node id -> client id.

    Raises:
        FedMoEError: the strategy, its parameters or its weights are not those that clients and layers can serve.
    """
    federation = settings.federation
    inner = _rated_strategy(settings, isinstance(grid, ReducingGrid))
    if (key := weight_key(inner)) != NUM_EXAMPLES:
        raise FedMoEError(
            f"federation.strategy_parameters: weighted_by_key is '{key}', but clients answer evaluations, and in "
            f"stacks trainings, by '{NUM_EXAMPLES}': leave it, and choose the weight with federation.client_weight"
        )
    drawn_from: int = settings.seed
    updates: PrivateUpdates | DistributedNoise | None = None
    if settings.privacy.on and not settings.privacy.sum_bits:
        drawn_from = secret_of(settings, deployed)
        inner = updates = private(inner, settings, drawn_from)
    schedule = aggregation_schedule(settings, groups)
    partial = PartialAggregation(inner, schedule, federation.guards.max_examples, federation.min_reply_fraction)
    partial.in_place = True  # the loop copies the best model, and keeps no other
    sums = None
    if settings.privacy.sum_bits:
        from strategies.privacy.distributed import distributed  # most runs do without
        from strategies.sums.layer import exact_sums

        updates = noise = distributed(settings) if settings.privacy.on else None
        sums = exact_sums(partial, settings, noise)
    return Cohorts(sums or partial, federation.client_fraction, drawn_from, client_ids), partial, updates, sums


def _rated_strategy(settings: Settings, reducing: bool) -> Strategy:
    """Return the strategy with its learning rate, and with its guard against outliers where single replies come."""
    federation = settings.federation
    strategy = build_strategy(federation.strategy, federation.strategy_parameters)
    for part in chain(strategy):
        if type(part).start is not Strategy.start:
            raise FedMoEError(
                f"federation.strategy: {type(part).__name__} has a start() of its own, which would never be called: "
                "FedMoE runs the rounds, with their evaluations and checkpoints. Do what it does before or between "
                "rounds in configure_train, where grid.send_and_receive reaches the clients"
            )
    rated = ServerLearningRate(strategy, federation.server_schedule, federation.num_rounds)
    if settings.privacy.sum_bits:
        from strategies.sums.layer import content_with_sums

        return content_with_sums(rated)
    # Where a simulation's hosts merge the replies, there are no single updates left to compare.
    merged = reducing and settings.simulation.aggregate_in_hosts and not needs_every_reply(rated)
    multiple = federation.guards.norm_multiple
    return rated if merged or not multiple else OutlierClipping(rated, multiple)
