"""What a strategy may want to know of a round beyond its arrays: the groups, and which of them are shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.serverapp.strategy import Strategy

from strategies.layers.schedule import AggregationSchedule
from strategies.layers.wrapper import chain


@dataclass(frozen=True)
class RoundContext:
    """A round as the schedule has it.

    Attributes:
        round: its number, from 1.
        warmup: whether it belongs to the warm-up.
        shared: names of the groups that are aggregated in it.
        groups: group -> names of its parameters, those of private groups too.
    """

    round: int
    warmup: bool
    shared: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]

    def names(self, group: str) -> tuple[str, ...]:
        """Return the parameters of a group that the strategy sees in this round: all of them, or none."""
        return self.groups[group] if group in self.shared else ()


def tell_context(strategy: Strategy, schedule: AggregationSchedule, server_round: int) -> None:
    """Set the attribute ``context`` of ``strategy``, and of what it wraps, wherever there is one."""
    shared = tuple(schedule.shared_groups(server_round))
    context = RoundContext(server_round, server_round <= schedule.warmup_rounds, shared, schedule.groups)
    for part in chain(strategy):
        if hasattr(part, "context"):
            part.context = context
