"""A strategy with an attribute ``context`` knows the groups and the schedule."""

from __future__ import annotations

from typing import Any

from flwr.serverapp.strategy import FedAvg
from strategy_fakes import GROUPS, SHARED, grid_of, model, run_rounds, schedule

from strategies import PartialAggregation, RoundContext, Wrapper, build_strategy, load_state_arrays, state_arrays


class Curious(FedAvg):
    context: RoundContext | None = None

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        assert self.context is not None
        seen.append(self.context)
        return super().aggregate_train(server_round, replies)


seen: list[RoundContext] = []


def test_it_is_told_the_round_before_it_begins() -> None:
    seen.clear()
    partial = PartialAggregation(Wrapper(Curious(min_train_nodes=1, min_available_nodes=1)), schedule(1))
    run_rounds(partial, grid_of(2), model(), [1, 2])
    first, second = seen
    assert (first.round, first.warmup, first.shared) == (1, True, tuple(GROUPS))
    assert (second.round, second.warmup, second.shared) == (2, False, tuple(SHARED))
    assert second.groups == {group: tuple(names) for group, names in GROUPS.items()}
    assert second.names("backbone") == tuple(GROUPS["backbone"])
    assert second.names("router") == () != first.names("router")


def test_it_is_no_state_and_nobody_else_is_told() -> None:
    partial = PartialAggregation(Curious(min_train_nodes=1, min_available_nodes=1), schedule(1))
    run_rounds(partial, grid_of(2), model(), [1])
    state = state_arrays(partial)
    assert not any("context" in key for key in state)
    load_state_arrays(PartialAggregation(Curious(), schedule(1)), state)
    plain = build_strategy("fedavg", {})
    run_rounds(PartialAggregation(plain, schedule(1)), grid_of(2), model(), [1])
    assert not hasattr(plain, "context")
