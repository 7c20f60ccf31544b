"""The mean of replies: by hand, sparse as dense, in parts as in one, and who may be given it."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    Strategy,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from strategy_fakes import content, f32, grid_of, model, ordered, record, run_rounds, schedule, values

from fedmoe.errors import FailureKind
from strategies import (
    AggregationSchedule,
    Cohorts,
    PartialAggregation,
    ReplyMean,
    ServerLearningRate,
    build_strategy,
    counts_of,
    needs_every_reply,
)
from strategies.layers.replies import TableRows, Valued

SERVER = record({"items": f32([[0, 0], [1, 1], [2, 2], [3, 3]]), "body": f32([10, 20]), "gate": np.float32(1)})


def reply(arrays: dict[str, Any], weight: float = 1, node: int = 7, **metrics: Any) -> Message:
    request = Message(RecordDict(), node, "train")
    return Message(content({n: np.asarray(a) for n, a in arrays.items()}, weight, **metrics), reply_to=request)


def rows(ids: list[int], items: Any, body: Any = (0, 0), gate: float = 0.0) -> dict[str, Any]:
    found = {"items": f32(items), "body": f32(body), "gate": np.float32(gate)}
    return found | {"items/rows": np.array(ids, np.int64)}


def mean_of(*replies: Message) -> list[Message]:
    mean = ReplyMean(SERVER)
    for one in replies:
        mean.add(one)
    return mean.replies()


def arrays_of(message: Message) -> dict[str, np.ndarray]:
    return values(message.content.array_records["arrays"])


def test_three_clients_by_hand() -> None:
    # Weights 1, 1, 2. Row 1: client 0 says 5, the others count as the server's 1: (5 + 1 + 2*1) / 4 = 2.
    # Row 2: clients 0 and 2 say 4 and 6, client 1 counts as 2: (4 + 2 + 2*6) / 4 = 4.5. Row 3: client 2 is dense: 3.5.
    dense = {"items": f32([[0, 0], [1, 1], [6, 6], [4, 4]]), "body": f32([4, 8]), "gate": np.float32(3)}
    (mean,) = mean_of(
        reply(rows([1, 2], [[5, 5], [4, 4]], (8, 8), 1), 1, loss=4.0, each=[1.0, 0.0]),
        reply(rows([], np.zeros((0, 2)), (0, 4), 1), 1, loss=2.0, each=[1.0, 4.0]),
        reply(dense, 2, loss=1.0, each=[0.5, 2.0]),
    )
    found = arrays_of(mean)
    assert list(found) == ["items", "body", "gate"]
    np.testing.assert_array_equal(found["items"], f32([[0, 0], [2, 2], [4.5, 4.5], [3.5, 3.5]]))
    np.testing.assert_array_equal(found["body"], f32([4, 7]))
    assert found["gate"] == np.float32(2) and found["gate"].shape == ()
    metrics = dict(mean.content.metric_records["metrics"].items())
    assert {name: metrics[name] for name in ("num-examples", "loss", "each", "num-clients")} == {
        "num-examples": 4,
        "loss": 2.0,
        "each": [0.75, 2.0],
        "num-clients": 3,
    }
    assert {array.dtype for array in mean.content.array_records["arrays"].values()} == {"float32"}


def test_rows_that_nobody_has_are_the_servers_to_the_bit() -> None:
    server = record({"items": f32(np.random.default_rng(0).normal(size=(50, 3)))})
    mean = ReplyMean(server)
    for weight in (3, 7, 11):
        mean.add(reply({"items": f32([[1, 2, 3]]), "items/rows": np.array([4])}, weight))
    found = arrays_of(mean.replies()[0])["items"]
    kept = np.arange(50) != 4
    assert found[kept].tobytes() == server["items"].numpy()[kept].tobytes()
    np.testing.assert_array_equal(found[4], f32([1, 2, 3]))


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6))
@hypothesis_settings(max_examples=50, deadline=None)
def test_sparse_is_dense_and_a_mean_of_means_is_the_mean(seed: int, clients: int) -> None:
    rng = np.random.default_rng(seed)
    server = record({"items": f32(rng.normal(size=(12, 3)))})
    whole, sparse, parts = ReplyMean(server), ReplyMean(server), [ReplyMean(server), ReplyMean(server)]
    for client in range(clients):
        ids = np.flatnonzero(rng.random(11) < 0.4) + 1
        table = server["items"].numpy()
        table[ids] = rng.normal(size=(len(ids), 3))
        weight, loss = int(rng.integers(1, 50)), float(rng.normal())
        message = {"items": table[ids], "items/rows": ids}
        whole.add(reply({"items": table}, weight, loss=loss))
        sparse.add(reply(message if client % 3 else {"items": table}, weight, loss=loss))
        parts[client % 2].add(reply(message, weight, loss=loss))
    together = ReplyMean(server)
    for part in parts:
        for one in pickle.loads(pickle.dumps(part.replies())):
            together.add(one)
    first, *others = (mean.replies()[0] for mean in (whole, sparse, together))
    for other in others:
        np.testing.assert_allclose(arrays_of(other)["items"], arrays_of(first)["items"], rtol=0, atol=1e-6)
        found, wanted = (one.content.metric_records["metrics"] for one in (other, first))
        assert (found["num-examples"], found["num-clients"]) == (wanted["num-examples"], clients)
        assert found["loss"] == pytest.approx(wanted["loss"])


def test_bytes_are_those_of_the_clients() -> None:
    replies = [reply(rows([1], [[5, 5]])), reply(rows([2, 3], [[5, 5], [6, 6]]))]
    (mean,) = mean_of(*replies)
    expected = sum(counts_of(one)["num-bytes"] for one in replies)
    assert counts_of(mean) == {"num-clients": 2, "num-bytes": expected}
    assert expected == sum(r.count_bytes() for one in replies for r in one.content.values())


def test_refused_and_failed_replies_are_errors_beside_the_mean() -> None:
    failed = Message(Error(1, "no disk"), reply_to=Message(RecordDict(), 4, "train"))
    good = reply(rows([1], [[5, 5]]), node=5)
    bad = reply(rows([9], [[5, 5]]), node=6)
    other = reply(rows([1], [[5, 5]]), node=8, odd=1.0)
    mean, *errors = mean_of(failed, good, bad, other)
    assert mean.metadata.src_node_id == 5
    assert counts_of(mean)["num-clients"] == 1
    assert [one.metadata.src_node_id for one in errors] == [4, 6, 8]
    assert [one.error.code for one in errors] == [1, FailureKind.REFUSED, FailureKind.REFUSED]
    assert errors[1].error.reason.startswith("parameter 'items/rows' must be ascending")
    assert errors[2].error.reason == "metric 'odd' is not in the other replies"
    assert mean_of(failed) == [failed]
    assert mean_of() == []


def test_the_arguments_travel_to_other_processes() -> None:
    again = pickle.loads(pickle.dumps(partial(ReplyMean, dict(SERVER.items()), "windows")))()
    assert (again.weight_key, list(again.expected)) == ("windows", list(SERVER))


class Own(FedAvg):
    pass


class Says(FedAvg):
    needs_every_reply = False


class SaysNothing(Says):
    pass


@pytest.mark.parametrize(
    ("strategy", "every"),
    [
        *((build_strategy(name, {}), False) for name in ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")),
        (FedProx(proximal_mu=0.1), False),
        *((build_strategy(name, {}), True) for name in ("fedmedian", "fedtrimmedavg", "krum", "bulyan")),
        (Own(), True),
        (Says(), False),
        (SaysNothing(), True),
        (DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 5), True),
        (ServerLearningRate(FedAdam(), "cosine", 3), False),
        (ServerLearningRate(FedMedian(), "constant", 3), True),
        (Cohorts(PartialAggregation(FedAvg(), schedule()), 1.0, 0, lambda grid: {}), False),
        (FedAvg(train_metrics_aggr_fn=lambda contents, key: MetricRecord()), True),
    ],
)
def test_who_needs_every_reply(strategy: Strategy, every: bool) -> None:
    assert needs_every_reply(strategy) is every


def embedding_of_rows(client: int, message: Message) -> RecordDict:
    """Client c has moved row c + 1 alone, by c + 1."""
    sent = values(message.content.array_records["arrays"])
    arrays = {name: sent[name] for name in ("blocks.0.weight", "blocks.0.bias")}
    table = "item_embedding.weight"
    moved = {table: sent[table][[client + 1]] + f32(client + 1), f"{table}/rows": np.array([client + 1])}
    return content(arrays | moved, examples=client + 1)


def embedding_of_tables(client: int, message: Message) -> RecordDict:
    """The same, sent whole."""
    sparse = embedding_of_rows(client, message)
    arrays = values(sparse.array_records["arrays"])
    table = message.content.array_records["arrays"]["item_embedding.weight"].numpy()
    table[arrays.pop("item_embedding.weight/rows")] = arrays["item_embedding.weight"]
    return content(arrays | {"item_embedding.weight": table}, examples=client + 1)


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedmedian", "fedtrimmedavg", "krum"])
def test_a_strategy_cannot_tell_rows_from_tables(name: str) -> None:
    ends = []
    for answer in (embedding_of_rows, embedding_of_tables):
        partial = PartialAggregation(build_strategy(name, {}), schedule(0))
        grid = grid_of(3, answer)
        ends.append(values(run_rounds(ordered(partial, grid), grid, model(), [1, 2])))
    for parameter in ends[0]:
        np.testing.assert_allclose(ends[0][parameter], ends[1][parameter], rtol=0, atol=1e-6)


class Watching(FedAvg):
    """Keeps what it is shown."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.shown = list(replies)
        return super().aggregate_train(server_round, self.shown)


class WatchingMeans(Watching):
    needs_every_reply = False


def test_what_a_strategy_is_shown() -> None:
    shown = {}
    for kind in (Watching, WatchingMeans):
        strategy = kind()
        run_rounds(PartialAggregation(strategy, schedule(0)), grid_of(3, embedding_of_rows), model(), [1])
        shown[kind] = [one.content for one in strategy.shown]
    # Every reply: tables that are not there until somebody asks for them.
    tables = [one.array_records["arrays"]["item_embedding.weight"] for one in shown[Watching]]
    assert len(tables) == 3 and all(isinstance(table, TableRows) for table in tables)
    assert all(table.rows.shape == (1, 2) and table.numpy().shape == (4, 2) for table in tables)  # type: ignore[attr-defined]
    assert Array(tables[0].numpy()).data == tables[0].data
    # The mean alone: one reply with the weights of all, and no word about what it is made of.
    (mean,) = shown[WatchingMeans]
    assert dict(mean.metric_records["metrics"].items()) == {"num-examples": 6, "loss": 1.0}
    assert isinstance(mean.array_records["arrays"]["item_embedding.weight"], Valued)


def test_the_server_goes_on_from_means_that_hosts_have_made() -> None:
    start = model()
    plain = PartialAggregation(FedAvg(), schedule(0))
    wanted = values(run_rounds(plain, grid_of(3, embedding_of_rows), start, [1]))
    reduced = PartialAggregation(FedAvg(), schedule(0), means=True)
    grid = grid_of(3, embedding_of_rows)
    replies = list(grid.send_and_receive(reduced.configure_train(1, start, ConfigRecord(), grid)))
    expected = {name: start[name] for name in start if name in schedule(0).shared_names(1)}
    hosts = [ReplyMean(expected), ReplyMean(expected)]
    for place, one in enumerate(replies):
        hosts[place % 2].add(one)
    arrays, metrics = reduced.aggregate_train(1, [one for host in hosts for one in host.replies()])
    assert arrays is not None and metrics is not None
    assert set(metrics) == {"loss"}
    for name, array in wanted.items():
        np.testing.assert_allclose(arrays[name].numpy(), array, rtol=0, atol=1e-6)


def test_memory_grows_with_rows_and_not_with_tables() -> None:
    server = record({"items": np.zeros((1000, 8), np.float32)})
    inner = FedMedian()
    strategy = PartialAggregation(inner, AggregationSchedule({"embedding": ["items"]}, 0, ["embedding"], ["embedding"]))
    seen: list[Message] = []
    inner.aggregate_train = lambda round_, replies: (seen.extend(replies), (None, None))[1]  # type: ignore[method-assign]

    def answer(client: int, message: Message) -> RecordDict:
        return content({"items": np.ones((2, 8), np.float32), "items/rows": np.array([1, 2 + client])})

    run_rounds(strategy, grid_of(5, answer), server, [1])
    record_of = [one.content.array_records["arrays"]["items"] for one in seen]
    assert sum(array.rows.nbytes + array.ids.nbytes for array in record_of) == 5 * (64 + 16)  # type: ignore[attr-defined]
    assert all(array.server is record_of[0].server for array in record_of)  # type: ignore[attr-defined]
    assert isinstance(ArrayRecord({"items": record_of[0]})["items"], Array)
