"""A run continued from state_arrays is bit-equal to the uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from strategy_fakes import grid_of, model, run_rounds, same_bytes, schedule

from fedmoe.errors import FedMoEError
from strategies import (
    Cohorts,
    Layer,
    OutlierClipping,
    PartialAggregation,
    ServerLearningRate,
    build_strategy,
    chain,
    load_state_arrays,
    state_arrays,
)

BUILDERS: dict[str, Callable[[], Strategy]] = {
    "fedadam": lambda: build_strategy("fedadam", {"eta": 0.05}),
    "fedyogi": lambda: build_strategy("fedyogi", {}),
    "fedadagrad": lambda: build_strategy("fedadagrad", {}),
    "fedavgm": lambda: build_strategy("fedavgm", {"server_momentum": 0.9, "server_learning_rate": 0.5}),
    "adaptive server-side": lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        build_strategy("fedavg", {}), 0.0, 4, initial_clipping_norm=0.2
    ),
    "adaptive client-side over fedadam": lambda: DifferentialPrivacyClientSideAdaptiveClipping(
        build_strategy("fedadam", {}), 0.0, 4
    ),
    "fixed over fedavgm": lambda: DifferentialPrivacyServerSideFixedClipping(
        build_strategy("fedavgm", {"server_momentum": 0.9}), 0.0, 0.3, 4
    ),
}


def whole(inner: Strategy, reference_order: bool, cosine: bool = False) -> Strategy:
    rated = ServerLearningRate(inner, "cosine" if cosine else "constant", 6)
    return Cohorts(PartialAggregation(rated, schedule(2, reference_order)), 0.5, 1, grid_of(8).client_ids)


def through_a_file(state: Mapping[str, np.ndarray], folder: Any) -> dict[str, np.ndarray]:
    """What a checkpoint does to the state: other containers, another order."""
    back = {}
    for i, key in enumerate(reversed(list(state))):
        np.save(folder / f"{i}.npy", state[key], allow_pickle=False)
        back[key] = np.load(folder / f"{i}.npy")
    return back


@pytest.mark.parametrize("reference_order", [False, True])
@pytest.mark.parametrize("stop", [1, 2, 3])  # before, at and after the change of the schedule
@pytest.mark.parametrize("name", BUILDERS)
def test_continued_is_bit_equal(name: str, stop: int, reference_order: bool, tmp_path: Any) -> None:
    grid = grid_of(8)
    cosine = name.startswith("fed")
    uninterrupted = whole(BUILDERS[name](), reference_order, cosine)
    expected = run_rounds(uninterrupted, grid, model(), range(1, 6))

    first = whole(BUILDERS[name](), reference_order, cosine)
    arrays = run_rounds(first, grid, model(), range(1, stop + 1))
    state = through_a_file(state_arrays(first), tmp_path)
    second = whole(BUILDERS[name](), reference_order, cosine)
    load_state_arrays(second, state)
    assert same_bytes(run_rounds(second, grid, arrays, range(stop + 1, 6)), expected)
    assert state_arrays(second).keys() == state_arrays(uninterrupted).keys()


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ("fixed over fedavgm",)])
def test_the_state_matters(name: str) -> None:
    grid = grid_of(8)
    expected = run_rounds(whole(BUILDERS[name](), False), grid, model(), range(1, 4))
    arrays = run_rounds(whole(BUILDERS[name](), False), grid, model(), [1, 2])
    assert not same_bytes(run_rounds(whole(BUILDERS[name](), False), grid, arrays, [3]), expected)


def test_the_clipping_norm_is_state() -> None:
    strategy: Any = BUILDERS["adaptive server-side"]()
    run_rounds(PartialAggregation(strategy, schedule()), grid_of(4), model(), [1, 2])
    other: Any = BUILDERS["adaptive server-side"]()
    load_state_arrays(other, state_arrays(strategy))
    assert other.clipping_norm == strategy.clipping_norm != 0.2
    assert type(other.clipping_norm) is float


class Keeping(FedAvg):
    """All kinds of state, and settings that are none."""

    def __init__(self, label: str = "x") -> None:
        super().__init__()
        self.label, self.nothing, self.names = label, None, ["b", "a"]
        self.on, self.steps, self.rate = True, 3, 0.1
        self.vector, self.scalar = np.arange(3, dtype=np.int32), np.float32(1.5)
        self.rates, self.by_name = [0.1, 2, True], {"z/1": 0.5, "a": np.ones((2, 1), np.float32)}
        self.pair, self.empty = (1, 2.0), dict[str, float]()
        self.record = ArrayRecord({"q": Array(np.zeros(2)), "b": Array(np.ones(()))})


def test_every_kind_comes_back_as_it_was() -> None:
    old, new = Keeping(), Keeping()
    for attribute in (
        "on",
        "steps",
        "rate",
        "vector",
        "scalar",
        "rates",
        "by_name",
        "pair",
        "record",
        "weighted_by_key",
    ):
        setattr(new, attribute, None)
    new.weighted_by_key = "num-examples"
    load_state_arrays(new, state_arrays(old))
    assert (new.on, new.steps, new.rate, new.rates, new.pair) == (True, 3, 0.1, [0.1, 2, True], (1, 2.0))
    assert [type(value) for value in (new.on, *new.rates)] == [bool, float, int, bool]
    assert type(new.scalar) is np.float32
    np.testing.assert_array_equal(new.vector, old.vector)
    assert new.vector.dtype == np.int32
    assert list(new.by_name) == ["z/1", "a"]
    assert type(new.by_name["z/1"]) is float
    assert list(new.record) == ["q", "b"]
    assert same_bytes(new.record, old.record)


def test_the_state_is_a_copy() -> None:
    strategy = Keeping()
    state = state_arrays(strategy)
    strategy.vector += 1
    np.testing.assert_array_equal(state["0/Keeping/vector/value/000000/array/"], [0, 1, 2])


class Own(FedAvg):
    """A strategy that looks after its own state."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.steps = 0

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"steps/all": np.int64(self.steps)}  # type: ignore[dict-item]

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        self.steps = int(state["steps/all"])


def test_a_strategy_may_keep_its_own_state_inside_a_wrapper() -> None:
    old, new = Own(), Own()
    old.steps = 5
    load_state_arrays(PartialAggregation(new, schedule()), state_arrays(PartialAggregation(old, schedule())))
    assert new.steps == 5


@pytest.mark.parametrize("value", [np.random.default_rng(0), {1.5: "x"}, {3}, [np.array(["a"])], {"a": [1]}, 2**70])
def test_state_that_would_be_lost_is_refused(value: Any) -> None:
    strategy: Any = FedAvg()
    strategy.odd = value
    with pytest.raises(FedMoEError, match=r"strategy FedAvg keeps 'odd' .* state_dict"):
        state_arrays(strategy)


def test_settings_and_empty_containers_are_no_state() -> None:
    strategy: Any = FedAvg()
    known = state_arrays(strategy).keys()
    strategy.a, strategy.b, strategy.c, strategy.d = {}, [], {"x"}, {"k": "v"}
    assert state_arrays(strategy).keys() == known


def test_the_state_of_another_strategy_is_refused() -> None:
    state = state_arrays(PartialAggregation(build_strategy("fedadam", {}), schedule()))
    with pytest.raises(FedMoEError, match=r"state of strategy FedAdam .* this run uses PartialAggregation > FedAvgM"):
        load_state_arrays(PartialAggregation(build_strategy("fedavgm", {}), schedule()), state)
    noise = {"noise_multiplier": 0.1, "num_sampled_clients": 4, "clipping_norm": 1.0, "strategy": "fedadam"}
    deeper = state_arrays(build_strategy("dp-server-fixed", noise))
    with pytest.raises(FedMoEError, match="this run uses FedAdam;"):
        load_state_arrays(build_strategy("fedadam", {}), deeper)


def test_layers_without_state_may_come_and_go() -> None:
    strategy: Any = build_strategy("fedadam", {"eta": 0.5})
    state = state_arrays(OutlierClipping(PartialAggregation(strategy, schedule()), 3.0))
    assert state.keys() == state_arrays(strategy).keys()
    other: Any = build_strategy("fedadam", {"eta": 0.1})
    load_state_arrays(PartialAggregation(other, schedule()), state)
    assert other.eta == 0.5


def test_chain_lists_what_is_wrapped() -> None:
    strategy = whole(BUILDERS["fixed over fedavgm"](), False)
    assert [type(part).__name__ for part in chain(strategy)] == [
        "Cohorts",
        "PartialAggregation",
        "ServerLearningRate",
        "DifferentialPrivacyServerSideFixedClipping",
        "FedAvgM",
    ]
    strategy.summary()


def test_what_a_layer_of_ones_own_remembers_is_state() -> None:
    class Counting(Layer):
        def __init__(self, strategy: Strategy) -> None:
            super().__init__(strategy)
            self.rounds = 0

    before, after = Counting(build_strategy("fedavg", {})), Counting(build_strategy("fedavg", {}))
    before.rounds = 5
    load_state_arrays(after, state_arrays(before))
    assert after.rounds == 5
