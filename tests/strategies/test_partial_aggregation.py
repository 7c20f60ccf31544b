"""Aggregation rules against numbers worked out by hand, and the rules about private parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from strategy_fakes import (
    GROUPS,
    SHAPES,
    SHARED,
    FakeGrid,
    content,
    f32,
    grid_of,
    model,
    record,
    run_rounds,
    same_bytes,
    schedule,
    values,
)

from fedmoe.errors import FedMoEError
from strategies import STRATEGIES, AggregationSchedule, Cohorts, PartialAggregation, build_strategy

PRIVATE = [name for group, names in GROUPS.items() for name in names if group not in SHARED]
REQUIRED: dict[str, dict[str, Any]] = {
    "fedavgm": {"server_momentum": 0.9, "server_learning_rate": 0.5},
    "fedprox": {"proximal_mu": 0.1},
    "multikrum": {"num_nodes_to_select": 2},
    "qfedavg": {"client_learning_rate": 0.1},
}
# Three clients with 1, 1 and 2 examples: weights 1/4, 1/4, 1/2, all exact in binary.
BODY = {0: [4.0, 8.0], 1: [8.0, 0.0], 2: [2.0, 2.0]}
GATE = {0: 1.0, 1: 3.0, 2: -1.0}
EXAMPLES = {0: 1, 1: 1, 2: 2}


def small_schedule(reference_order: bool) -> AggregationSchedule:
    first, then = (["body"], ["body", "gate"]) if reference_order else (["body", "gate"], ["body"])
    return AggregationSchedule({"body": ["w"], "gate": ["g"]}, 1, first, then)


def small_answer(client: int, message: Message) -> RecordDict:
    sent = {"w": f32(BODY[client]), "g": np.float32(GATE[client])}
    shared = message.content.config_records["config"]["shared"]
    return content({n: v for n, v in sent.items() if n == "w" or "gate" in shared}, EXAMPLES[client])  # type: ignore[operator]


def small_run(name: str, parameters: Mapping[str, Any], reference_order: bool, rounds: int) -> dict[str, np.ndarray]:
    strategy = PartialAggregation(build_strategy(name, parameters), small_schedule(reference_order))
    start = record({"g": np.float32(0.25), "w": f32([0.0, 1.0])})
    return values(run_rounds(strategy, grid_of(3, small_answer), start, range(1, rounds + 1)))


def test_weighted_mean_by_hand_in_both_orders() -> None:
    # w = (1*[4,8] + 1*[8,0] + 2*[2,2]) / 4 = [4, 3];  g = (1*1 + 1*3 + 2*(-1)) / 4 = 0.5
    for reference_order, g in ((False, 0.5), (True, 0.25)):
        after = small_run("fedavg", {}, reference_order, rounds=1)
        np.testing.assert_array_equal(after["w"], f32([4, 3]))
        np.testing.assert_array_equal(after["g"], np.float32(g))  # 0.25: private in round 1, still as it was
        np.testing.assert_array_equal(small_run("fedavg", {}, reference_order, rounds=2)["g"], np.float32(0.5))


def test_momentum_by_hand_in_both_orders() -> None:
    # FedAvgM, rate 1, momentum 0.5. Round 1: d_w = [0,1] - [4,3] = [-4,-2] = v_w, w = [4,3].
    # Round 2: d_w = 0, v_w = 0.5 * [-4,-2] = [-2,-1], w = [6,4].
    # g joins in round 2 without momentum: d_g = 0.25 - 0.5 = -0.25 = v_g, g = 0.5; or it leaves with 0.5 after round 1.
    for reference_order in (False, True):
        after = small_run("fedavgm", {"server_momentum": 0.5}, reference_order, rounds=2)
        np.testing.assert_array_equal(after["w"], f32([6, 4]))
        np.testing.assert_array_equal(after["g"], np.float32(0.5))


def test_adagrad_by_hand_in_both_orders() -> None:
    # FedAdagrad, eta 1, tau 0. Round 1: d_w = [4,2], v_w = [16,4], w = [0,1] + [4,2]/[4,2] = [1,2].
    # Round 2: d_w = [3,1], v_w = [25,5], w = [1,2] + [3/5, 1/sqrt(5)] = [1.6, 2.4472136].
    # g, in its only shared round: d_g = 0.25, v_g = 0.0625, g = 0.25 + 0.25/0.25 = 1.25.
    for reference_order in (False, True):
        after = small_run("fedadagrad", {"eta": 1.0, "tau": 0.0}, reference_order, rounds=2)
        np.testing.assert_allclose(after["w"], [1.6, 2.4472136], rtol=1e-6)
        np.testing.assert_allclose(after["g"], 1.25, rtol=1e-6)
        assert after["w"].dtype == after["g"].dtype == np.float32


def make(name: str) -> Strategy:
    return build_strategy(name, REQUIRED.get(name, {}))


@pytest.mark.parametrize("reference_order", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_across_a_change_and_keeps_private_bytes(name: str, reference_order: bool) -> None:
    plan = schedule(2, reference_order)
    grid = grid_of(5)
    strategy = Cohorts(PartialAggregation(make(name), plan), 1.0, 0, grid.client_ids)
    arrays = model()
    for server_round in range(1, 5):
        new = run_rounds(strategy, grid, arrays, [server_round])
        assert list(new) == list(SHAPES)
        for parameter in SHAPES:
            private = parameter in plan.private_names(server_round)
            assert (new[parameter].data == arrays[parameter].data) is private, (server_round, parameter)
            assert new[parameter].dtype == "float32"
            assert tuple(new[parameter].shape) == SHAPES[parameter]
        arrays = new


@pytest.mark.parametrize("reference_order", [False, True])
@pytest.mark.parametrize(
    "wrapper",
    [
        lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 1.0, 5),
        lambda inner: DifferentialPrivacyClientSideFixedClipping(inner, 0.1, 1.0, 5),
        lambda inner: DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.1, 5),
        lambda inner: DifferentialPrivacyClientSideAdaptiveClipping(inner, 0.1, 5),
    ],
)
@pytest.mark.parametrize("inner", ["fedavg", "fedadam", "fedavgm"])
def test_differential_privacy_wrappers_run_across_a_change(wrapper: Any, inner: str, reference_order: bool) -> None:
    grid = grid_of(5)
    partial = PartialAggregation(wrapper(make(inner)), schedule(2, reference_order))
    start = model()
    end = run_rounds(partial, grid, start, range(1, 5))
    assert all(end[name].data != start[name].data for name in SHAPES)


def test_clipping_reaches_parameters_of_shape_zero() -> None:
    def answer(client: int, message: Message) -> RecordDict:
        return content({"w": f32([0, 0]), "g": np.float32(100)})

    partial = PartialAggregation(
        DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.0, 3), small_schedule(False)
    )
    end = run_rounds(partial, grid_of(3, answer), record({"w": f32([0, 0]), "g": np.float32(0)}), [1])
    assert end["g"].shape == ()
    assert float(end["g"].numpy()) == pytest.approx(1.0)


@pytest.mark.parametrize("reply", ["malformed", "unchanged"])
def test_what_differential_privacy_does_with_odd_replies(reply: str) -> None:
    def answer(client: int, message: Message) -> RecordDict:
        if client != 1:
            return content({"w": f32([1, 1]), "g": f32(1)})
        return content({"w": f32([0, 0]), "g": f32(0)} if reply == "unchanged" else {})

    partial = PartialAggregation(
        DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.0, 3), small_schedule(False)
    )
    start = record({"w": f32([0, 0]), "g": f32(0)})
    if reply == "unchanged":  # Flower divides by the length of the update
        with pytest.raises(FedMoEError, match=r"round 1: strategy FedAvg cannot aggregate: .*division by zero"):
            run_rounds(partial, grid_of(3, answer), start, [1])
    else:
        assert same_bytes(run_rounds(partial, grid_of(3, answer), start, [1]), start)
        assert len(partial.refusals) == 1


def test_messages_carry_everything_and_are_one_object() -> None:
    grid = grid_of(3)
    partial = PartialAggregation(make("fedprox"), schedule(0))
    arrays = model()
    config = ConfigRecord({"own": 1})
    messages = list(partial.configure_train(7, arrays, config, grid))
    sent = messages[0].content
    assert same_bytes(sent.array_records["arrays"], arrays)
    assert dict(sent.config_records["config"].items()) == {
        "own": 1,
        "proximal-mu": 0.1,
        "server-round": 7,
        "shared": ["embedding", "backbone"],
    }
    assert len({id(message.content) for message in messages}) == 1
    assert dict(config.items()) == {"own": 1}
    sent = next(iter(partial.configure_evaluate(7, arrays, ConfigRecord({"split": "test"}), grid))).content
    assert same_bytes(sent.array_records["arrays"], arrays)
    assert sent.config_records["config"]["shared"] == ["embedding", "backbone"]
    assert sent.config_records["config"]["split"] == "test"


def test_the_strategy_sees_the_shared_parameters_only() -> None:
    seen: list[list[str]] = []

    class Watching(FedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Any) -> Any:
            seen.append(list(arrays))
            return super().configure_train(server_round, arrays, config, grid)

    run_rounds(PartialAggregation(Watching(), schedule(1)), grid_of(2), model(), [1, 2])
    assert seen == [list(SHAPES), [name for name in SHAPES if name not in PRIVATE]]


def test_nothing_aggregated_changes_nothing() -> None:
    strategy = PartialAggregation(make("bulyan"), schedule())  # Bulyan wants 3 replies
    messages = strategy.configure_train(1, model(), ConfigRecord(), grid := grid_of(2))
    assert strategy.aggregate_train(1, grid.send_and_receive(messages)) == (None, None)


def test_metrics_are_aggregated_in_evaluation() -> None:
    grid = grid_of(3)
    strategy = PartialAggregation(make("fedavg"), schedule())
    replies = grid.send_and_receive(strategy.configure_evaluate(1, model(), ConfigRecord(), grid))
    assert strategy.aggregate_evaluate(1, replies) == MetricRecord({"hr@10": 1.0})


def test_flowers_own_loop_runs_it() -> None:
    grid = grid_of(3)
    start = model()
    strategy = Cohorts(PartialAggregation(make("fedadam"), schedule(1)), 0.7, 1, grid.client_ids)
    result = strategy.start(grid, start, num_rounds=3)
    by_hand = Cohorts(PartialAggregation(make("fedadam"), schedule(1)), 0.7, 1, grid.client_ids)
    assert same_bytes(result.arrays, run_rounds(by_hand, grid, start, [1, 2, 3]))


class Returning(FedAvg):
    """Returns what it is told to."""

    def __init__(self, arrays: ArrayRecord) -> None:
        super().__init__()
        self.arrays = arrays

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return self.arrays, None


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({}, "round 1: strategy Returning returned no parameter 'w'"),
        ({"w": [1.0, 2.0], "g": 1.0}, "returned the unknown parameter 'g'"),
        ({"w": [1.0, 2.0, 3.0]}, r"'w' with shape \[3\], expected \[2\]"),
        ({"w": [1.0, np.inf]}, "not finite in 'w'"),
    ],
)
def test_a_strategy_that_returns_nonsense_is_named(returned: dict[str, Any], message: str) -> None:
    partial = PartialAggregation(Returning(record(returned)), small_schedule(True))
    start = record({"g": np.float32(0.5), "w": f32([0.0, 1.0])})
    with pytest.raises(FedMoEError, match=message):
        run_rounds(partial, grid_of(3, small_answer), start, [1])


def test_flowers_errors_become_one_line() -> None:
    strategy = PartialAggregation(
        build_strategy("qfedavg", {"client_learning_rate": 0.1, "train_loss_key": "no-such"}), schedule()
    )
    with pytest.raises(FedMoEError, match="round 1: strategy QFedAvg cannot aggregate: AggregationError: Missing"):
        run_rounds(strategy, grid_of(3), model(), [1])


def test_names_must_fit_the_groups() -> None:
    partial = PartialAggregation(FedAvg(), small_schedule(False))
    with pytest.raises(FedMoEError, match="parameter 'x' of the model is in no group"):
        partial.configure_train(1, record({"w": [1.0], "g": 1.0, "x": 1.0}), ConfigRecord(), grid_of(2))
    with pytest.raises(FedMoEError, match="parameter 'g' is in a group but not"):
        partial.configure_evaluate(1, record({"w": [1.0]}), ConfigRecord(), grid_of(2))
    with pytest.raises(FedMoEError, match="before configure_train"):
        partial.aggregate_train(1, [])


class Remembering(FedAvg):
    """Keeps state by parameter in every form that follows a change, and one that is none of its business."""

    def __init__(self) -> None:
        super().__init__()
        self.by_record = ArrayRecord()
        self.by_name: dict[str, np.ndarray] = {}
        self.in_order: list[np.ndarray] = []
        self.losses: list[float] = []

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        if not self.by_name:
            self.by_record = ArrayRecord({n: Array(np.ones_like(a.numpy())) for n, a in arrays.items()})
            self.by_name = {n: np.ones_like(a.numpy()) for n, a in arrays.items()}
            self.in_order = [np.ones_like(a.numpy()) for a in arrays.values()]
        self.losses.append(1.0)
        assert self.by_record.keys() == self.by_name.keys() == arrays.keys()
        return arrays, metrics


@pytest.mark.parametrize("reference_order", [False, True])
def test_state_of_ones_own_strategy_follows(reference_order: bool) -> None:
    inner = Remembering()
    plan = schedule(2, reference_order)
    run_rounds(PartialAggregation(inner, plan), grid_of(2), model(), [1, 2, 3])
    names = [name for name in SHAPES if name in plan.shared_names(3)]
    assert list(inner.by_name) == list(inner.by_record) == names
    for name, listed in zip(names, inner.in_order, strict=True):
        fresh = name in PRIVATE  # joined in round 3
        for value in (inner.by_name[name], inner.by_record[name].numpy(), listed):
            np.testing.assert_array_equal(value, np.full(SHAPES[name] or (1,), 0.0 if fresh else 1.0))
    assert inner.losses == [1.0, 1.0, 1.0]


def test_grids_of_one_are_enough() -> None:
    grid = FakeGrid({5: 0})
    for name in ("fedavg", "fedadam", "fedmedian", "krum"):
        strategy = Cohorts(PartialAggregation(make(name), schedule()), 0.1, 0, grid.client_ids)
        assert not same_bytes(run_rounds(strategy, grid, model(), [1]), model())
