"""Malformed replies are refused by name, and cost only themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from strategy_fakes import content, grid_of, model, ordered, run_rounds, same_bytes, schedule, trained, values

from fedmoe.errors import FailureKind
from strategies import Guard, PartialAggregation, build_strategy

BAD = 2  # the client that sends the malformed reply


def broken(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Callable[[int, Message], RecordDict]:
    """Clients of which one changes its arrays and metrics before it replies."""

    def answer(client: int, message: Message) -> RecordDict:
        reply = trained(client, message)
        if client != BAD:
            return reply
        arrays, metrics = dict(reply.array_records["arrays"].items()), dict(reply.metric_records["metrics"].items())
        change(arrays, metrics)
        return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})

    return answer


def put(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(arrays: dict[str, Any], metrics: dict[str, Any]) -> None:
        target = metrics if name in ("num-examples", "loss", "extra", "num-clients", "num-bytes") else arrays
        if value is None:
            del target[name]
        else:
            target[name] = value

    return change


def array(value: Any, dtype: type = np.float32) -> Array:
    return Array(np.asarray(value, dtype))


BIAS = "blocks.0.bias"
TABLE = "item_embedding.weight"  # [4, 2]
IDS = f"{TABLE}/rows"


def put_rows(ids: Any, rows: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(arrays: dict[str, Any], metrics: dict[str, Any]) -> None:
        arrays[IDS], arrays[TABLE] = ids, rows

    return change


ZIP = b"PK\x03\x04 not an archive"
CASES = [
    (put("router.weight", array(np.zeros((2, 2)))), "'router.weight' is not aggregated in this round"),
    (put("no.such", array([1.0])), "'no.such' is not aggregated in this round"),
    (put(BIAS, None), f"'{BIAS}' is missing"),
    (put(BIAS, array([1.0, 2.0])), rf"'{BIAS}' has shape \[2\], expected \[3\]"),
    (put(BIAS, array([1.0, 2.0, 3.0], np.float64)), f"'{BIAS}' has dtype float64, expected float32"),
    (put(BIAS, array([1.0, np.nan, 3.0])), f"'{BIAS}' has a value that is not finite"),
    (put(BIAS, array([1.0, -np.inf, 3.0])), f"'{BIAS}' has a value that is not finite"),
    (put(BIAS, Array("float32", (3,), "numpy.ndarray", b"\x93NUMPY")), f"'{BIAS}' cannot be decoded"),
    (put(BIAS, Array("float32", (3,), "numpy.ndarray", ZIP)), f"'{BIAS}' cannot be decoded"),
    (put(BIAS, Array("float32", (3,), "torch", b"")), f"'{BIAS}' cannot be decoded"),
    (
        put_rows(array([2, 1], np.int64), array(np.ones((2, 2)))),
        rf"'{IDS}' must be ascending, distinct and within 1..3",
    ),
    (put_rows(array([1, 1], np.int64), array(np.ones((2, 2)))), "must be ascending, distinct"),
    (put_rows(array([0, 1], np.int64), array(np.ones((2, 2)))), "within 1..3"),
    (put_rows(array([-1], np.int64), array(np.ones((1, 2)))), "within 1..3"),
    (put_rows(array([3, 4], np.int64), array(np.ones((2, 2)))), "within 1..3"),
    (put_rows(array([1, 2], np.int32), array(np.ones((2, 2)))), rf"'{IDS}' must be a list of int64, is int32 \[2\]"),
    (put_rows(array([[1]], np.int64), array(np.ones((1, 2)))), r"must be a list of int64, is int64 \[1, 1\]"),
    (put_rows(array([1.5]), array(np.ones((1, 2)))), "must be a list of int64, is float32"),
    (
        put_rows(Array("int64", (1,), "numpy.ndarray", b"\x93NUMPY"), array(np.ones((1, 2)))),
        f"'{IDS}' cannot be decoded",
    ),
    (put_rows(array([1, 2], np.int64), array(np.ones((3, 2)))), rf"'{TABLE}' has shape \[3, 2\], expected \[2, 2\]"),
    (put_rows(array([1, 2], np.int64), array(np.ones((2, 3)))), rf"'{TABLE}' has shape \[2, 3\], expected \[2, 2\]"),
    (put_rows(array([1], np.int64), array([[np.nan, 1]])), f"'{TABLE}' has a value that is not finite"),
    (put_rows(array([1], np.int64), array([[1, 1]], np.float64)), f"'{TABLE}' has dtype float64"),
    (put(IDS, array([1, 2], np.int64)), rf"'{TABLE}' has shape \[4, 2\], expected \[2, 2\]"),
    (put("router.weight/rows", array([1], np.int64)), "'router.weight/rows' is not aggregated in this round"),
    (put("num-clients", 3), "metric 'num-clients' is for means of several clients, which a client may not send"),
    (put("num-bytes", 1), "metric 'num-bytes' is for means of several clients, which a client may not send"),
    (put("num-examples", 0), "'num-examples', its weight, must be a number above 0, is 0"),
    (put("num-examples", -3), "must be a number above 0"),
    (put("num-examples", [1, 2]), "must be a number above 0"),
    (put("num-examples", 2.5), "'num-examples', its weight, must be a whole number, is 2.5"),
    (put("num-examples", 100_001), "'num-examples', its weight, is 100001, above the limit of 100000"),
    (put("num-examples", 1e300), "above the limit of 100000"),
    (put("num-examples", float("nan")), "'num-examples' is not finite"),
    (put("num-examples", None), "'num-examples', its weight, is missing"),
    (put("loss", float("inf")), "'loss' is not finite"),
    (put("loss", None), "metric 'loss' is missing"),
    (put("extra", 1.0), "metric 'extra' is not in the other replies"),
    (put("loss", [1.0, 2.0]), "metric 'loss' has another length"),
]


@pytest.mark.parametrize(("change", "reason"), CASES)
@pytest.mark.parametrize("name", ["fedavg", "fedmedian"])
def test_a_bad_reply_costs_only_itself(name: str, change: Any, reason: str) -> None:
    start = model()
    strategy = PartialAggregation(build_strategy(name, {}), schedule(0))
    grid = grid_of(5, broken(change))
    got = run_rounds(ordered(strategy, grid), grid, start, [1])
    (refusal,) = strategy.refusals
    assert refusal.node_id == 1000 + BAD
    assert re.search(reason, refusal.reason)

    without = grid_of(5)
    del without.clients[1000 + BAD]
    alone = PartialAggregation(build_strategy(name, {}), schedule(0))
    expected = run_rounds(ordered(alone, without), without, start, [1])
    assert same_bytes(got, expected)


@pytest.mark.parametrize("reply", [RecordDict(), RecordDict({"a": ArrayRecord(), "b": ArrayRecord()})])
def test_a_reply_without_its_records_is_refused(reply: RecordDict) -> None:
    strategy = PartialAggregation(build_strategy("fedavg", {}), schedule(0))
    grid = grid_of(3, lambda client, message: reply if client == BAD else trained(client, message))
    run_rounds(strategy, grid, model(), [1])
    assert "array records, one is needed" in strategy.refusals[0].reason


def test_without_metrics_or_under_another_name_is_refused() -> None:
    def answer(client: int, message: Message) -> RecordDict:
        reply = trained(client, message)
        metrics = reply.metric_records["metrics"]
        if client == 0:
            del reply["metrics"]
        if client == 1:
            del reply["metrics"]
            reply["numbers"] = metrics
        return reply

    strategy = PartialAggregation(build_strategy("fedavg", {}), schedule(0))
    grid = grid_of(4, answer)
    run_rounds(ordered(strategy, grid), grid, model(), [1])
    first, second = strategy.refusals
    assert "it holds 0 metric records" in first.reason
    assert "named 'numbers', in the other replies 'metrics'" in second.reason


def test_all_refused_aggregates_nothing() -> None:
    strategy = PartialAggregation(build_strategy("fedavg", {}), schedule(0))
    grid = grid_of(3, lambda client, message: RecordDict())
    messages = strategy.configure_train(1, model(), ConfigRecord(), grid)
    assert strategy.aggregate_train(1, grid.send_and_receive(messages)) == (None, None)
    assert len(strategy.refusals) == 3


def test_errors_of_clients_pass_through_and_replies_stay_whole() -> None:
    grid = grid_of(3)
    strategy = PartialAggregation(build_strategy("fedmedian", {}), schedule(0))  # it takes its replies apart
    messages = list(strategy.configure_train(1, model(), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    replies[1] = Message(Error(2, "client 1 failed"), reply_to=messages[1])
    before = values(replies[0].content.array_records["arrays"])
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert strategy.refusals == []
    assert values(replies[0].content.array_records["arrays"]).keys() == before.keys()


def test_the_refusal_is_an_error_of_the_same_node() -> None:
    seen: list[Message] = []
    inner = build_strategy("fedmedian", {})
    aggregate = inner.aggregate_train
    inner.aggregate_train = lambda r, replies: seen.extend(replies) or aggregate(r, replies)  # type: ignore
    grid = grid_of(4, broken(put(BIAS, None)))
    run_rounds(ordered(PartialAggregation(inner, schedule(0)), grid), grid, model(), [1])
    assert [reply.has_error() for reply in seen] == [False, False, True, False]
    assert seen[BAD].metadata.src_node_id == 1000 + BAD
    assert (seen[BAD].error.code, seen[BAD].error.reason) == (FailureKind.REFUSED, f"parameter '{BIAS}' is missing")


def test_replies_to_evaluations_are_checked() -> None:
    def answer(client: int, message: Message) -> RecordDict:
        metrics: dict[str, Any] = {"num-examples": 1, "hr@10": float(client)}
        return RecordDict({"metrics": MetricRecord(metrics | ({"odd": 1.0} if client == BAD else {}))})

    grid = grid_of(4, answer)
    strategy = PartialAggregation(build_strategy("fedavg", {}), schedule())
    replies = grid.send_and_receive(strategy.configure_evaluate(1, model(), ConfigRecord(), grid))
    assert strategy.aggregate_evaluate(1, replies) == MetricRecord({"hr@10": 4 / 3})
    assert "metric 'odd' is not in the other replies" in strategy.refusals[0].reason
    assert Guard().checked([]) == ([], [])


def test_the_weight_may_be_another_metric() -> None:
    inner = build_strategy("fedavg", {"weighted_by_key": "windows"})
    partial = PartialAggregation(inner, schedule(0))
    arrays = {"item_embedding.weight": np.ones((4, 2)), "blocks.0.weight": np.ones((2, 3)), BIAS: np.ones(3)}
    sent = {name: value.astype(np.float32) for name, value in arrays.items()}
    answer = lambda client, _: content(sent, **({"windows": 2} if client else {"windows": 0}))  # noqa: E731
    run_rounds(partial, grid_of(3, answer), model(), [1])
    assert "'windows', its weight, must be a number above 0" in partial.refusals[0].reason


def test_only_the_first_of_two_replies_counts() -> None:
    grid = grid_of(3)
    strategy = PartialAggregation(build_strategy("fedavg", {}), schedule(0))
    replies = list(grid.send_and_receive(strategy.configure_train(1, model(), ConfigRecord(), grid)))
    once, _ = strategy.aggregate_train(1, replies)
    twice, _ = strategy.aggregate_train(1, [*replies, replies[1]])
    assert "the node has replied already" in strategy.refusals[0].reason
    assert once is not None and twice is not None and same_bytes(once, twice)


def test_the_limit_of_examples_is_a_setting() -> None:
    strategy = PartialAggregation(build_strategy("fedavg", {}), schedule(0), max_examples=3)
    grid = grid_of(5)  # client k claims k + 1 examples
    run_rounds(ordered(strategy, grid), grid, model(), [1])
    assert [refusal.node_id for refusal in strategy.refusals] == [1003, 1004]


@pytest.mark.parametrize(("fraction", "aggregated"), [(0.6, True), (0.7, False)])
def test_below_the_quorum_the_strategy_hears_nothing(fraction: float, aggregated: bool) -> None:
    heard: list[int] = []
    inner = build_strategy("fedavg", {})
    aggregate = inner.aggregate_train
    inner.aggregate_train = lambda r, replies: heard.append(r) or aggregate(r, replies)  # type: ignore
    grid = grid_of(3, broken(put(BIAS, None)))
    strategy = PartialAggregation(inner, schedule(0), min_reply_fraction=fraction)
    replies = grid.send_and_receive(strategy.configure_train(1, model(), ConfigRecord(), grid))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert (arrays is not None, bool(heard)) == (aggregated, aggregated)
    assert len(strategy.refusals) == 1
