from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_fakes import FakeGrid, grid_of, model, run_rounds, same_bytes, schedule

from fedmoe.errors import FedMoEError
from strategies import STRATEGIES, Cohorts, PartialAggregation, build_strategy, sample_clients

ARRAYS = model()
REQUIRED: dict[str, dict[str, Any]] = {
    "qfedavg": {"client_learning_rate": 0.1},
    "multikrum": {"num_nodes_to_select": 2},
}


def cohorts(grid: FakeGrid, fraction: float = 0.5, seed: int = 3, name: str = "fedavg") -> Cohorts:
    inner = build_strategy(name, REQUIRED.get(name, {}))
    return Cohorts(PartialAggregation(inner, schedule()), fraction, seed, grid.client_ids)


def asked(messages: Iterable[Message], grid: FakeGrid) -> list[int]:
    return [grid.clients[message.metadata.dst_node_id] for message in messages]


def cohort_of(grid: FakeGrid, server_round: int, seed: int = 3, fraction: float = 0.5) -> list[int]:
    strategy = cohorts(grid, fraction, seed)
    got = asked(strategy.configure_train(server_round, ARRAYS, ConfigRecord(), grid), grid)
    assert got == sorted(got) == strategy.cohort
    return got


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(1, 500), st.randoms(use_true_random=False), st.integers())
def test_the_cohort_depends_on_seed_round_and_clients_alone(
    count: int, seed: int, server_round: int, shuffler: random.Random, global_seed: int
) -> None:
    clients = list(range(0, 3 * count, 3))
    expected = cohort_of(FakeGrid(dict(enumerate(clients))), server_round, seed)
    nodes = shuffler.sample(range(2**62, 2**62 + 10**6), count)
    shuffler.shuffle(clients)
    random.seed(global_seed)
    np.random.seed(global_seed % 2**32)
    assert cohort_of(FakeGrid(dict(zip(nodes, clients, strict=True))), server_round, seed) == expected
    assert len(expected) == max(1, count // 2)


class Unread(dict[int, int]):
    """Node id -> client id that knows its inverse, and must not be read entry by entry."""

    clients = range(30)

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("read entry by entry")

    items = keys = values = __iter__  # type: ignore[assignment]

    def node_of(self, client: int) -> int:
        return 100 + client


def test_a_mapping_that_knows_its_inverse_gives_the_same_cohort_without_being_read() -> None:
    table = {100 + client: client for client in range(30)}
    grid = FakeGrid(table)
    unread = Unread(table)
    inner = PartialAggregation(build_strategy("fedavg", {}), schedule())
    strategy = Cohorts(inner, 0.5, 3, lambda grid: unread)
    assert asked(strategy.configure_train(1, ARRAYS, ConfigRecord(), grid), grid) == cohort_of(grid, 1)
    strategy.evaluate_on([40, 5, 2])
    assert asked(strategy.configure_evaluate(1, ARRAYS, ConfigRecord(), grid), grid) == [2, 5]


def test_rounds_and_seeds_differ_and_everybody_has_a_turn() -> None:
    grid = grid_of(30)
    assert cohort_of(grid, 1) != cohort_of(grid, 2)
    assert cohort_of(grid, 1) != cohort_of(grid, 1, seed=4)
    assert {client for server_round in range(1, 40) for client in cohort_of(grid, server_round)} == set(range(30))


@pytest.mark.parametrize(
    ("count", "fraction", "size"), [(100, 0.29, 29), (943, 0.2, 188), (3, 0.1, 1), (5, 1.0, 5), (1, 0.5, 1)]
)
def test_sizes(count: int, fraction: float, size: int) -> None:
    assert len(cohort_of(grid_of(count), 1, fraction=fraction)) == size


@settings(max_examples=12, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(STRATEGIES)))
def test_the_order_of_arrival_changes_no_bit(shuffler: random.Random, name: str) -> None:
    grid = grid_of(8)
    results = []
    for shuffled in (False, True):
        strategy = cohorts(grid, 0.8, name=name)
        replies = list(grid.send_and_receive(strategy.configure_train(1, ARRAYS, ConfigRecord(), grid)))
        if shuffled:
            shuffler.shuffle(replies)
        arrays, metrics = strategy.aggregate_train(1, replies)
        assert arrays is not None
        results.append((arrays, metrics))
    assert same_bytes(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_the_order_of_the_nodes_changes_no_bit() -> None:
    one, other = grid_of(9), FakeGrid({7 * client + 5: client for client in reversed(range(9))})
    assert same_bytes(
        run_rounds(cohorts(one, name="fedadam"), one, ARRAYS, [1, 2, 3]),
        run_rounds(cohorts(other, name="fedadam"), other, ARRAYS, [1, 2, 3]),
    )


def test_evaluation_on_a_fixed_set() -> None:
    grid = grid_of(6)
    strategy = cohorts(grid)

    def configure() -> list[int]:
        return asked(strategy.configure_evaluate(1, ARRAYS, ConfigRecord(), grid), grid)

    assert configure() == list(range(6))
    strategy.evaluate_on([4, 1, 99])  # 99 is not connected
    assert configure() == strategy.evaluated == [1, 4]
    replies = grid.send_and_receive(strategy.configure_evaluate(1, ARRAYS, ConfigRecord(), grid))
    assert strategy.aggregate_evaluate(1, reversed(list(replies))) == MetricRecord({"hr@10": 2.5})
    strategy.evaluate_on(None)
    assert configure() == list(range(6))
    strategy.evaluate_on([99])
    with pytest.raises(FedMoEError, match="none of the clients to evaluate on"):
        configure()


def test_sample_clients() -> None:
    ids = [9, 2, 5, 7]
    assert sample_clients(0, "evaluation", 0, ids, 10) == [2, 5, 7, 9]
    some = sample_clients(0, "evaluation", 0, ids, 2)
    assert some == sample_clients(0, "evaluation", 0, reversed(ids), 2)
    assert len(set(some)) == 2
    draws = [tuple(sample_clients(0, purpose, r, range(50), 5)) for purpose in ("a", "b") for r in (1, 2)]
    assert len(set(draws)) == 4


def test_the_view_is_the_grid_with_fewer_nodes() -> None:
    grid = grid_of(5)
    seen: list[Grid] = []

    class Looking(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Any:
            seen.append(grid)
            return super().configure_train(server_round, arrays, config, grid)

    strategy = Cohorts(
        PartialAggregation(Looking(min_train_nodes=1, min_available_nodes=1), schedule()), 0.5, 0, grid.client_ids
    )
    messages = list(strategy.configure_train(1, ARRAYS, ConfigRecord(), grid))
    (view,) = seen
    nodes = [1000 + client for client in strategy.cohort]
    assert view.get_node_ids() == nodes
    assert [node.node_id for node in view.get_nodes()] == nodes
    assert str(view.run) == "the run"
    view.set_run(view.run)
    assert len(list(view.send_and_receive(messages))) == 2
    message = view.create_message(messages[0].content, "train", 1000, "1")
    assert len(list(view.pull_messages(view.push_messages([message])))) == 3


def test_errors() -> None:
    with pytest.raises(FedMoEError, match="client_fraction must be above 0 and at most 1, is 0"):
        cohorts(grid_of(3), 0.0)
    with pytest.raises(FedMoEError, match="no client is connected"):
        cohort_of(FakeGrid({}), 1)
    with pytest.raises(FedMoEError, match="client 7 is claimed by nodes 1 and 2"):
        cohort_of(FakeGrid({1: 7, 2: 7}), 1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fraction_train": 0.5}, "FedAvg: fraction_train must be 1, is 0.5; set federation.client_fraction"),
        ({"min_train_nodes": 4}, "FedAvg: min_train_nodes is 4, but 3 clients take part"),
        ({"min_available_nodes": 9}, "min_available_nodes is 9, but 3 clients take part"),
    ],
)
def test_sampling_that_would_wait_for_ever_or_be_random_is_refused(parameters: dict[str, Any], message: str) -> None:
    grid = grid_of(6)
    strategy = Cohorts(PartialAggregation(build_strategy("fedavg", parameters), schedule()), 0.5, 0, grid.client_ids)
    with pytest.raises(FedMoEError, match=message):
        strategy.configure_train(1, ARRAYS, ConfigRecord(), grid)


def test_replies_of_unknown_nodes_come_last() -> None:
    grid = grid_of(2)
    strategy = cohorts(grid, 1.0)
    replies = list(grid.send_and_receive(strategy.configure_train(1, ARRAYS, ConfigRecord(), grid)))
    del grid.clients[1000]
    strategy.configure_evaluate(1, ARRAYS, ConfigRecord(), grid)  # node 1000 is gone by now
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
