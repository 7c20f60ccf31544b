"""A round is handed through the layers, and to a strategy with an attribute ``context``."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg
from strategy_fakes import GROUPS, SHAPES, SHARED, content, f32, grid_of, model, ordered, record, run_rounds, schedule

from fedmoe.errors import FedMoEError
from strategies import Layer, PartialAggregation, Round, build_strategy, load_state_arrays, state_arrays


class Curious(FedAvg):
    context: Round | None = None

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        assert self.context is not None
        seen.append(self.context)
        return super().aggregate_train(server_round, replies)


seen: list[Round] = []


def test_it_is_told_the_round_before_it_begins() -> None:
    seen.clear()
    partial = PartialAggregation(Layer(Curious(min_train_nodes=1, min_available_nodes=1)), schedule(1))
    run_rounds(partial, grid_of(2), model(), [1, 2])
    first, second = seen
    assert (first.number, first.warmup, first.shared) == (1, True, tuple(GROUPS))
    assert (second.number, second.warmup, second.shared) == (2, False, tuple(SHARED))
    assert second.groups == {group: tuple(names) for group, names in GROUPS.items()}
    assert second.names("backbone") == tuple(GROUPS["backbone"])
    assert second.names("router") == () != first.names("router")
    assert list(first.arrays) == list(SHAPES)
    assert sorted(second.arrays) == sorted([*GROUPS["embedding"], *GROUPS["backbone"]])
    assert first.arrays["gate"].shape == (1,)


def test_it_is_no_state_and_nobody_else_is_told() -> None:
    partial = PartialAggregation(Curious(min_train_nodes=1, min_available_nodes=1), schedule(1))
    run_rounds(partial, grid_of(2), model(), [1])
    state = state_arrays(partial)
    assert not any("context" in key for key in state)
    load_state_arrays(PartialAggregation(Curious(), schedule(1)), state)
    plain = build_strategy("fedavg", {})
    run_rounds(PartialAggregation(plain, schedule(1)), grid_of(2), model(), [1])
    assert not hasattr(plain, "context")


class Halving(Layer):
    """Counts half of the replies, and keeps which rounds it was told."""

    needs_every_reply = True

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        told.append(sent)
        return replies[: len(replies) // 2]


told: list[Round] = []


def test_without_partial_aggregation_the_outermost_layer_hands_the_round_on() -> None:
    told.clear()
    start = record({"w": f32([0.0])})
    grid = grid_of(4, lambda client, message: content({"w": f32([client])}))
    strategy = Layer(Halving(build_strategy("fedavg", {})))
    end = run_rounds(ordered(strategy, grid), grid, start, [1])
    assert end["w"].numpy().tolist() == [0.5]
    run_rounds(ordered(strategy, grid), grid, end, [2])
    assert [(sent.number, sent.arrays["w"].numpy().tolist()) for sent in told] == [(1, [0.0]), (2, [0.5])]
    with pytest.raises(FedMoEError, match="before configure_train"):
        Halving(build_strategy("fedavg", {})).aggregate_train(1, [])
