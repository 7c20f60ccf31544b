from __future__ import annotations

import math
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from strategy_fakes import content, f32, grid_of, model, ordered, record, run_rounds, same_bytes, schedule

from fedmoe.errors import FedMoEError
from strategies import AggregationSchedule, PartialAggregation, ServerLearningRate, build_strategy


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_cosine_sets_eta_in_each_round(name: str) -> None:
    inner = build_strategy(name, {"eta": 0.4})
    strategy: Any = ServerLearningRate(PartialAggregation(inner, schedule()), "cosine", num_rounds=4)
    seen = []
    for server_round in range(1, 6):
        run_rounds(strategy, grid_of(2), model(), [server_round])
        seen.append(inner.eta)  # type: ignore[attr-defined]
    half = 0.2 * math.sqrt(0.5)
    assert seen == pytest.approx([0.4, 0.2 + half, 0.2, 0.2 - half, 0.0])


def test_cosine_reaches_fedavgm_even_where_it_was_built_as_plain_averaging() -> None:
    def answer(client: int, message: Message) -> RecordDict:
        return content({"w": f32([4.0])})

    plan = AggregationSchedule({"body": ["w"]}, 0, [], ["body"])
    inner = ServerLearningRate(build_strategy("fedavgm", {}), "cosine", num_rounds=2)
    start = record({"w": f32([0.0])})
    # Rates 1, 0.5 and then 0: w = 0 + 1 * 4 = 4; stays there.
    assert run_rounds(PartialAggregation(inner, plan), grid_of(2, answer), start, [1])["w"].numpy() == [4.0]
    # A fresh one in round 2: w = 0 + 0.5 * 4.
    inner = ServerLearningRate(build_strategy("fedavgm", {}), "cosine", num_rounds=2)
    assert run_rounds(PartialAggregation(inner, plan), grid_of(2, answer), start, [2])["w"].numpy() == [2.0]


def test_constant_is_the_strategy_itself() -> None:
    grid = grid_of(3)
    plain = PartialAggregation(build_strategy("fedadam", {}), schedule())
    wrapped = ServerLearningRate(PartialAggregation(build_strategy("fedadam", {}), schedule()), "constant", 3)
    one, other = (run_rounds(ordered(strategy, grid), grid, model(), [1, 2, 3]) for strategy in (plain, wrapped))
    assert same_bytes(one, other)
    ServerLearningRate(build_strategy("fedavg", {}), "constant", 3)


def test_a_strategy_without_a_rate_cannot_follow_a_cosine() -> None:
    with pytest.raises(FedMoEError, match=r"server_schedule: strategy FedAvg has no server learning rate .*constant"):
        ServerLearningRate(build_strategy("fedavg", {}), "cosine", 3)
