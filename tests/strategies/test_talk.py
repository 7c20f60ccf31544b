"""What a strategy asks clients beside the round: made complete, guarded, and shown as a round's replies are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from strategy_fakes import SHAPES, content, f32, grid_of, model, ordered, record, run_rounds, schedule, trained, values

from fedmoe.errors import FedMoEError
from strategies import OutlierClipping, PartialAggregation
from strategies.rules.robust_rows import RobustRows
from strategies.rules.row_wise import RowWise

TABLE = "item_embedding.weight"
Asks = Callable[["Asking", Grid, ArrayRecord], None]


class Asking(FedAvg):
    """Calls a function of the test before it configures a round."""

    def __init__(self, asks: Asks) -> None:
        super().__init__()
        self.asks = asks
        self.seen: list[Message] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.asks(self, grid, arrays)
        return super().configure_train(server_round, arrays, config, grid)


def asked(asks: Asks, answer: Any = trained, rounds: int = 1) -> tuple[Asking, Any]:
    """Run rounds with a strategy that asks, of which the groups router and gate are private."""
    strategy, grid = Asking(asks), grid_of(3, answer)
    run_rounds(ordered(PartialAggregation(strategy, schedule(0)), grid), grid, model(), range(1, rounds + 1))
    return strategy, grid


def messages(kind: str, grid: Grid, content: RecordDict) -> list[Message]:
    return [Message(content, node, kind) for node in grid.get_node_ids()]


def rows(client: int, message: Message) -> RecordDict:
    """A client that sends one row of its table, as clients do, with a value that is not finite if it is the last."""
    reply = trained(client, message)
    if message.metadata.message_type == "train":
        arrays = values(reply.array_records["arrays"])
        arrays[TABLE + "/rows"] = np.array([1 + client])
        arrays[TABLE] = f32([[client, np.nan if client == 2 else 0.0]])
        reply["arrays"] = record(arrays)
    return reply


@pytest.mark.parametrize("by", ["send_and_receive", "push and pull"])
def test_training_replies_are_whole_and_a_bad_one_is_an_error(by: str) -> None:
    doubled = {name: 2 * array for name, array in values(model()).items() if name == TABLE}

    def asks(strategy: Asking, grid: Grid, arrays: ArrayRecord) -> None:
        questions = messages("train", grid, RecordDict({"arrays": record(doubled), "config": ConfigRecord()}))
        if by == "send_and_receive":
            strategy.seen += grid.send_and_receive(questions)
        else:
            strategy.seen += grid.pull_messages(grid.push_messages(questions))

    strategy, _ = asked(asks, rows)
    by_node = {reply.metadata.src_node_id: reply for reply in strategy.seen}
    table = by_node[1001].content.array_records["arrays"][TABLE].numpy()
    expected = doubled[TABLE].copy()
    expected[2] = [1.0, 0.0]
    np.testing.assert_array_equal(table, expected)
    assert by_node[1002].has_error() and "not finite" in by_node[1002].error.reason
    assert list(by_node[1001].content.array_records["arrays"]) == [
        n for n in SHAPES if n not in ("router.weight", "gate")
    ]


def test_questions_hold_a_model_only_where_the_strategy_gives_one() -> None:
    def asks(strategy: Asking, grid: Grid, arrays: ArrayRecord) -> None:
        for held in ({"mine": ConfigRecord({"a": 1})}, {"arrays": arrays}):
            grid.send_and_receive(messages("query", grid, RecordDict(held)))
            strategy.seen += [message for message in FAKE[0].sent if message.metadata.message_type == "query"]

    FAKE = []

    def answer(client: int, message: Message) -> RecordDict:
        return RecordDict() if message.metadata.message_type == "query" else trained(client, message)

    strategy, grid = Asking(asks), grid_of(3, answer)
    FAKE.append(grid)
    run_rounds(ordered(PartialAggregation(strategy, schedule(0)), grid), grid, model(), [1])
    bare, whole = strategy.seen[0].content, strategy.seen[3].content
    assert set(bare) == {"mine", "config"} and bare["mine"] == ConfigRecord({"a": 1})
    assert bare["config"]["server-round"] == 1  # type: ignore[index]
    assert set(whole["arrays"]) == set(SHAPES)  # type: ignore[arg-type]


def test_two_messages_to_one_client_are_refused() -> None:
    def asks(strategy: Asking, grid: Grid, arrays: ArrayRecord) -> None:
        grid.send_and_receive(2 * messages("query", grid, RecordDict()))

    with pytest.raises(
        FedMoEError, match=r"strategy Asking sends node 1000 two messages at once, a client answers one"
    ):
        asked(asks)

    class Twice(FedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
            for _ in range(2):
                yield from super().configure_train(server_round, arrays, config, grid)

    grid = grid_of(3)
    with pytest.raises(FedMoEError, match="strategy Twice sends node 100. two messages"):
        run_rounds(PartialAggregation(Twice(), schedule(0)), grid, model(), [1])


def test_records_of_a_strategys_own_arrive_under_their_names() -> None:
    class Telling(FedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
            for message in super().configure_train(server_round, arrays, config, grid):
                message.content = RecordDict({"arrays": arrays, "hints": ConfigRecord({"rate": 0.5})})
                yield message

    grid = grid_of(3)
    (message, *_) = PartialAggregation(Telling(), schedule(0)).configure_train(1, model(), ConfigRecord(), grid)
    assert message.content["hints"] == ConfigRecord({"rate": 0.5})
    assert "rate" not in message.content["config"]  # type: ignore[operator]


def test_an_unknown_parameter_is_refused() -> None:
    class Adding(FedAvg):
        def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
            more = record(values(arrays) | {"momentum": f32([1.0])})
            return super().configure_train(server_round, more, config, grid)

    with pytest.raises(FedMoEError, match="sends 'momentum', which is no parameter of the model; put it into a record"):
        run_rounds(PartialAggregation(Adding(), schedule(0)), grid_of(3), model(), [1])


class Shifting(FedAvg):
    """Sends client k the model plus k; the clients move it by as much, client 2 by far more."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
        for message in super().configure_train(server_round, arrays, config, grid):
            by = grid.client_ids()[message.metadata.dst_node_id]
            shifted = {name: array + f32(100 * by) for name, array in values(arrays).items()}
            message.content = RecordDict({"arrays": record(shifted), "config": config})
            yield message


def moved(client: int, message: Message) -> RecordDict:
    sent = values(message.content.array_records["arrays"])
    change = 50.0 if client == 2 else 0.1
    return content({name: sent[name] + f32(change) for name in SHAPES if name not in ("router.weight", "gate")})


@pytest.mark.parametrize("rule", ["outliers", "row-wise", "robust-rows"])
def test_updates_are_measured_from_what_each_client_was_sent(rule: str) -> None:
    # Behind the model that all get, clients 1 and 2 would have moved by 100 and 200, and nobody would stand out.
    inner: Any = {
        "outliers": OutlierClipping(Shifting(), 2.0),
        "row-wise": RowWise(Shifting(), TABLE),
        "robust-rows": RobustRows(Shifting(), table=TABLE),
    }[rule]
    grid, start = grid_of(3, moved), model()
    found = values(run_rounds(ordered(PartialAggregation(inner, schedule(0)), grid), grid, start, [1]))
    change = found["blocks.0.bias"] - values(start)["blocks.0.bias"]
    # Outliers: 0, 100 and 200 away, moved by .1, .1 and twice the median; row-wise: the mean. Robust: of the model that
    # all get, by the mean update, where that of client 2 is cut to the norm of the others: 17 numbers, its table gone.
    robust = (0.1 + 0.1 + 0.1 * np.sqrt(17 / 9)) / 3
    expected = {"outliers": 100 + (0.1 + 0.1 + 0.2) / 3, "row-wise": 100 + 50.2 / 3, "robust-rows": robust}[rule]
    np.testing.assert_allclose(change, expected, rtol=1e-4)
