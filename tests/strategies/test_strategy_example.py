"""The example of one's own strategy, named as in the settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from strategy_fakes import content, f32, grid_of, model, ordered, record, run_rounds, same_bytes, schedule

from strategies import (
    AggregationSchedule,
    PartialAggregation,
    ServerLearningRate,
    build_strategy,
    load_state_arrays,
    state_arrays,
)

NAME = "server_step:ServerStep"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "strategies"))


def test_the_step_by_hand() -> None:
    def answer(client: int, message: Message) -> RecordDict:
        return content({"w": f32([4.0, 8.0 * client])}, examples=1 + 2 * client)

    # Mean of [4, 0] and [4, 8] with weights 1/4 and 3/4: [4, 6]; half of the way from [0, 2]: [2, 4].
    plan = AggregationSchedule({"body": ["w"]}, 0, [], ["body"])
    partial = PartialAggregation(build_strategy(NAME, {"eta": 0.5}), plan)
    end = run_rounds(partial, grid_of(2, answer), record({"w": f32([0.0, 2.0])}), [1])
    np.testing.assert_array_equal(end["w"].numpy(), f32([2, 4]))


def test_it_works_with_all_the_wrappers_and_continues() -> None:
    grid = grid_of(4)
    results = []
    for stop in (4, 2):
        arrays = model()
        state: dict[str, np.ndarray] = {}
        for rounds in (range(1, stop + 1), range(stop + 1, 5)):
            rated = ServerLearningRate(build_strategy(NAME, {"eta": 0.5}), "cosine", 4)
            strategy = ordered(PartialAggregation(rated, schedule()), grid)
            load_state_arrays(strategy, state)
            arrays = run_rounds(strategy, grid, arrays, rounds)
            state = state_arrays(strategy)
        results.append(arrays)
    assert same_bytes(*results)
    assert not same_bytes(results[0], model())


def test_nothing_to_aggregate() -> None:
    grid = grid_of(2, lambda client, message: RecordDict())
    strategy = PartialAggregation(build_strategy(NAME, {}), schedule())
    replies = grid.send_and_receive(strategy.configure_train(1, model(), ConfigRecord(), grid))
    assert strategy.aggregate_train(1, replies) == (None, None)
