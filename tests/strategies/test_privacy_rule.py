"""The private mean: its arithmetic by hand, its noise, what it sends and refuses, and that it resumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_fakes import (
    FakeGrid,
    content,
    f32,
    grid_of,
    model,
    record,
    run_rounds,
    same_bytes,
    schedule,
    trained,
    values,
)

from fedmoe.errors import FedMoEError
from strategies import (
    WRAPPERS,
    AggregationSchedule,
    Cohorts,
    PartialAggregation,
    PrivateUpdates,
    build_strategy,
    load_state_arrays,
    state_arrays,
)
from strategies.layers.course import poisson_sample

TINY = 1e-9  # a noise multiplier that leaves the mean as it is


def private(strategy: Any = None, **changes: Any) -> PrivateUpdates:
    plan: dict[str, Any] = {"noise": TINY, "norm": 1.0, "rate": 1.0, "key": 7} | changes
    return PrivateUpdates(strategy or build_strategy("fedavg", {}), **plan)


def sent_by(updates: dict[int, list[float]], **metrics: Any) -> Any:
    """Clients that change "w" from zero to these; those not named send the model back."""
    return lambda client, message: content({"w": f32(updates.get(client, [0, 0]))}, 1 + client, **metrics)


def mean_of(mechanism: PrivateUpdates, grid: FakeGrid, server_round: int = 1) -> np.ndarray:
    start = record({"w": f32([0, 0])})
    mechanism.expect(len(grid.clients))
    messages = mechanism.configure_train(server_round, start, ConfigRecord(), grid)
    arrays, _ = mechanism.aggregate_train(server_round, grid.send_and_receive(messages))
    assert arrays is not None
    return arrays["w"].numpy()


def test_updates_are_clipped_and_weigh_the_same() -> None:
    # (3, 4) has norm 5 and becomes (.6, .8); (0, .5) is within; the other eight change nothing.
    assert mean_of(private(), grid_of(10, sent_by({0: [3, 4], 9: [0, 0.5]}))) == pytest.approx([0.06, 0.13])


def test_the_expected_cohort_divides_whoever_answers() -> None:
    mechanism = private()
    grid = grid_of(20, sent_by({0: [1, 0]}))
    mechanism.expect(20)
    messages = list(mechanism.configure_train(1, record({"w": f32([0, 0])}), ConfigRecord(), grid))
    replies = [reply for reply in grid.send_and_receive(messages) if reply.metadata.src_node_id < 1005]
    assert len(replies) == 5
    arrays, _ = mechanism.aggregate_train(1, replies)
    assert arrays is not None
    assert arrays["w"].numpy() == pytest.approx([0.05, 0.0], abs=1e-6)


def test_touched_rows_count_as_the_whole_table() -> None:
    def answer(client: int, message: Message) -> RecordDict:
        if client:
            return content({"w": f32(np.ones((4, 2)))})
        return content({"w": f32([[1, 1.6]]), "w/rows": np.array([2])})

    mechanism = private()
    mechanism.expect(10)
    partial = PartialAggregation(mechanism, AggregationSchedule({"embedding": ["w"]}, 0, [], ["embedding"]))
    arrays = run_rounds(partial, grid_of(10, answer), record({"w": f32(np.ones((4, 2)))}), [1])
    assert arrays["w"].numpy() == pytest.approx(np.array([[1, 1], [1, 1], [1, 1.06], [1, 1]]))


def test_the_noise_has_its_deviation_and_follows_from_key_and_round() -> None:
    def noisy(server_round: int, key: int = 7) -> np.ndarray:
        wide = record({"w": f32(np.zeros(20_000))})
        grid = grid_of(10, lambda client, message: content({"w": f32(np.zeros(20_000))}))
        mechanism = private(noise=2.0, norm=0.5, key=key)
        mechanism.expect(10)
        messages = mechanism.configure_train(server_round, wide, ConfigRecord(), grid)
        arrays, _ = mechanism.aggregate_train(server_round, grid.send_and_receive(messages))
        assert arrays is not None
        return arrays["w"].numpy()

    first = noisy(1)
    assert float(first.std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.03)
    assert abs(float(first.mean())) < 0.005
    assert np.array_equal(first, noisy(1))
    assert not np.array_equal(first, noisy(2))
    assert not np.array_equal(first, noisy(1, key=8))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2), min_size=10, max_size=10))
def test_one_client_moves_the_mean_by_its_share_at_most(updates: list[list[float]]) -> None:
    """The sensitivity that the accounting rests on: norm / expected clients."""
    everyone = dict(enumerate(updates))
    without = {client: update for client, update in everyone.items() if client != 3}
    moved = mean_of(private(), grid_of(10, sent_by(everyone))) - mean_of(private(), grid_of(10, sent_by(without)))
    assert np.linalg.norm(moved) <= 0.1 + 1e-6


def test_the_strategy_sees_the_noisy_mean_alone() -> None:
    seen: list[list[Message]] = []

    class Watching(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            seen.append(list(replies))
            return super().aggregate_train(server_round, seen[-1])

    mean_of(private(Watching(min_available_nodes=1, min_train_nodes=1)), grid_of(10, sent_by({}, secret=3.0)))
    ((reply,),) = seen
    assert dict(reply.content["metrics"]) == {"num-examples": 1.0}


def test_metrics_are_asked_for_or_not() -> None:
    grid = grid_of(10, sent_by({}, norm_bit=1))
    for metrics, expected in (("none", set()), ("exact", {"loss"})):
        mechanism = private(metrics=metrics, side="client")
        mechanism.expect(10)
        messages = list(mechanism.configure_train(1, record({"w": f32([0, 0])}), ConfigRecord(), grid))
        config = messages[0].content["config"]
        assert config["clipping_norm"] == 1.0
        assert (config.get("metrics") == "none") == (metrics == "none")
        _, found = mechanism.aggregate_train(1, grid.send_and_receive(messages))
        assert set(found or {}) == expected


def test_adaptive_clipping_follows_the_quantile() -> None:
    mechanism = private(clipping="adaptive", norm=8.0, norm_rate=0.5, noise=0.5)
    grid = grid_of(200, sent_by({client: [1, 0] for client in range(200)}))
    for number in range(1, 30):
        mean_of(mechanism, grid, number)
    assert 0.5 < mechanism.norm < 1.6  # all updates have norm 1
    assert mechanism.used_norm != mechanism.norm
    with pytest.raises(FedMoEError, match="too large for 10 clients"):
        private(clipping="adaptive", noise=1.5).expect(10)
    # Andrew et al.: the two noises together are one of the multiplier that is accounted for.
    mechanism.expect(200)
    assert mechanism._noise_on_updates() ** -2 + (2 * 10.0) ** -2 == pytest.approx(0.5**-2)


def test_a_client_that_clips_says_whether_it_was_within() -> None:
    grid = grid_of(10, sent_by({client: [1, 0] for client in range(10)}, norm_bit=1))
    mechanism = private(clipping="adaptive", side="client", noise=0.1, norm_rate=1.0)
    mean_of(mechanism, grid)
    assert mechanism.norm > 1.2  # everyone was clipped, although nobody's update looks longer than 1


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedavgm", "fedadagrad", "fedyogi"])
def test_it_works_in_partial_aggregation_and_resumes(name: str) -> None:
    def build() -> Cohorts:
        inner = private(build_strategy(name, {}), clipping="adaptive", noise=0.3)
        return Cohorts(PartialAggregation(inner, schedule(2)), 0.9, 5, lambda grid: grid.clients)

    grid, start = grid_of(60), model()
    whole = run_rounds(build(), grid, start, range(1, 6))
    first = build()
    middle = run_rounds(first, grid, start, range(1, 4))
    second = build()
    load_state_arrays(second, state_arrays(first))
    assert same_bytes(run_rounds(second, grid, middle, range(4, 6)), whole)
    assert values(whole)["gate"].shape == ()


@pytest.mark.parametrize("answering", [10, 4])
def test_noise_of_the_clients_is_topped_up_to_the_same_sum(answering: int) -> None:
    size, deviations = 20_000, []

    def answer(client: int, message: Message) -> RecordDict:
        deviations.append(float(message.content["config"]["noise_deviation"]))
        noise = np.random.default_rng(client).normal(0, deviations[-1], size)
        return content({"w": f32(noise)}, norm_bit=0)

    mechanism = private(noise=2.0, norm=0.5, side="client")
    mechanism.expect(10)
    grid = grid_of(10, answer)
    messages = list(mechanism.configure_train(1, record({"w": f32(np.zeros(size))}), ConfigRecord(), grid))
    arrays, _ = mechanism.aggregate_train(1, list(grid.send_and_receive(messages))[:answering])
    assert arrays is not None
    assert deviations[0] == pytest.approx(2.0 * 0.5 / np.sqrt(10))
    assert float(arrays["w"].numpy().std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.03)


def test_an_update_longer_than_its_noise_is_cut() -> None:
    mechanism = private(noise=2.0, norm=0.5, side="client")
    moved = mean_of(mechanism, grid_of(10, sent_by({0: [1e6, 0]}, norm_bit=0)))
    bound = 0.5 + 2.0 * 0.5 / np.sqrt(10) * (np.sqrt(2) + 4)
    assert moved == pytest.approx([bound / 10, 0])


def test_poisson_samples() -> None:
    sizes = [len(poisson_sample(1, "cohort", number, range(1000), 0.05)) for number in range(200)]
    assert np.mean(sizes) == pytest.approx(50, rel=0.03)
    assert np.var(sizes) == pytest.approx(47.5, rel=0.3)  # binomial: of a fixed size it would be 0
    assert poisson_sample(1, "cohort", 3, range(50), 0.5) == poisson_sample(1, "cohort", 3, reversed(range(50)), 0.5)
    assert poisson_sample(1, "cohort", 3, range(50), 1.0) == list(range(50))


def test_too_few_clients_and_strategies_that_compare_are_refused() -> None:
    with pytest.raises(FedMoEError, match="gives 15.0, and none with a chance of 1e-07"):
        private(rate=0.1).expect(150)
    with pytest.raises(FedMoEError, match="at least 10 clients a round on average"):
        private(rate=1.0).expect(5)
    with pytest.raises(FedMoEError, match="RowWise compares the clients' updates"):
        private(build_strategy("rowwise", {"strategy": "fedavg"}))
    for side in ("server", "client"):
        flowers = {"strategy": "fedavg", "clipping_norm": 10.0, "noise_multiplier": 0.1, "num_sampled_clients": 10}
        with pytest.raises(FedMoEError, match="FixedClipping clips and adds noise as well"):
            private(build_strategy(f"dp-{side}-fixed", flowers))
    with pytest.raises(FedMoEError, match="Krum compares the clients' updates"):
        private(build_strategy("krum", {}))
    with pytest.raises(FedMoEError, match="privacy: RobustRows compares"):
        private(build_strategy("robust-rows", {"strategy": "fedavg"}))
    with pytest.raises(FedMoEError, match="before expect"):
        private().configure_train(1, model(), ConfigRecord(), grid_of(10))
    with pytest.raises(FedMoEError, match="before configure_train"):
        private().aggregate_train(1, [])


FLOWERS: dict[str, dict[str, Any]] = {
    "dp-server-fixed": {"clipping_norm": 1.0},
    "dp-server-adaptive": {},
    "dp-client-fixed": {"clipping_norm": 1.0},
    "dp-client-adaptive": {},
}


def test_all_of_flowers_wrappers_are_known() -> None:
    assert set(FLOWERS) == {name for name in WRAPPERS if name.startswith("dp-")}


@pytest.mark.parametrize("name", FLOWERS)
def test_flowers_own_wrappers_run_by_name(name: str) -> None:
    asked: list[Any] = []

    def answer(client: int, message: Message) -> RecordDict:
        asked.append(message.content["config"].get("clipping_norm"))
        arrays = {key: array.numpy() + f32(1) for key, array in message.content["arrays"].items()}
        shared = {key: value for key, value in arrays.items() if key != "gate" and not key.startswith("router")}
        return content(shared, norm_bit=1)

    parameters = {"noise_multiplier": 0.1, "num_sampled_clients": 30, "strategy": "fedavg"} | FLOWERS[name]
    partial = PartialAggregation(build_strategy(name, parameters), schedule(0))
    start = model()
    end: ArrayRecord = run_rounds(partial, grid_of(30, answer), start, [1])
    assert not same_bytes(end, start)
    assert end["gate"].data == start["gate"].data
    assert (asked[0] is not None) == name.startswith("dp-client")


def test_questions_that_no_budget_covers_are_refused() -> None:
    class Asks(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            grid.send_and_receive([Message(RecordDict({"arrays": arrays}), 1, "evaluate")])
            return []

    mechanism = private(Asks())
    mechanism.expect(100)
    with pytest.raises(FedMoEError, match="which no budget covers"):
        mechanism.configure_train(1, model(), ConfigRecord(), FakeGrid({}))


def test_questions_beside_an_evaluation_are_refused_too() -> None:
    class Asks(FedAvg):
        def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            return grid.pull_messages(grid.push_messages([Message(RecordDict({"arrays": arrays}), 1, "train")]))

    with pytest.raises(FedMoEError, match="which no budget covers"):
        private(Asks()).configure_evaluate(1, model(), ConfigRecord(), FakeGrid({}))


def test_a_reply_with_further_records_is_refused_and_lists_are_averaged() -> None:
    def answer(client: int, message: Message) -> RecordDict:
        reply = trained(client, message)
        reply["metrics"]["shares"] = [0.5, float(client)]  # type: ignore[index]
        if client == 7:
            reply["secret"] = ConfigRecord({"items": [1, 2]})
        return reply

    class Keeps(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            (self.reply,) = (reply for reply in replies if reply.has_content())
            return super().aggregate_train(server_round, [self.reply])

    kept = Keeps()
    mechanism = private(kept, metrics="exact")
    mechanism.expect(100)
    partial = PartialAggregation(mechanism, schedule(0))
    run_rounds(partial, grid_of(30, answer), model(), [1])
    (refusal,) = partial.refusals
    assert refusal.node_id == 1007 and "it holds the records metrics, secret beside its arrays" in refusal.reason
    shares = kept.reply.content["metrics"]["shares"]  # type: ignore[index]
    assert shares == pytest.approx([0.5, (sum(range(30)) - 7) / 29])


def test_a_config_that_drops_clipping_and_noise_is_refused() -> None:
    class OwnConfig(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            return [Message(RecordDict({"arrays": arrays, "config": ConfigRecord()}), 1, "train")]

    mechanism = private(OwnConfig(), side="client")
    mechanism.expect(100)
    with pytest.raises(FedMoEError, match="a config without what clients are asked for privacy"):
        mechanism.configure_train(1, model(), ConfigRecord(), FakeGrid({}))
