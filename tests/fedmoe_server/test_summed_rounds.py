"""Rounds in which the server sees exact sums alone: the model of the plain rounds, whoever adds up, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedmoe.errors import FedMoEError
from fedmoe.settings import PrivacySettings, Settings
from fedmoe.sums.terms import Terms
from fedmoe.wire import packed_bytes, to_record, unpack
from fedmoe_client.learning.summed_reply import summed_reply
from fedmoe_server.rounds.record import LoopState
from strategies import needs_every_reply
from strategies.rules.row_wise import RowWise
from strategies.sums.layer import content_with_sums, largest_weight
from strategies.sums.reply_sum import ReplySum

NORM = 2.0  # the fake clients' updates are longer than real ones


def summing(grid: Any, rows: bool = False, seed: int = 0) -> Any:
    """Let a fake grid's clients answer as real ones do where they are asked for sums.

    rows: of the item table they send every row but the padding and one that is their own.
    """
    answer = grid._answer
    grid.seen = []

    def summed(message: Message) -> Message:
        reply = answer(message)
        config = message.content.config_records.get("config", ConfigRecord())
        if reply.has_error() or "sum-bits" not in config:
            return reply
        client = message.metadata.dst_node_id
        trained = None
        if message.metadata.message_type == "train":
            trained = unpack(packed_bytes(reply.content["arrays"]))
            if rows:
                ids = np.delete(np.arange(1, 5), client % 4)
                trained |= {"item": trained["item"][ids], "item/rows": ids}
        server = unpack(packed_bytes(message.content["arrays"]))
        metrics = dict(reply.content["metrics"])
        bench = SimpleNamespace(settings=Settings(seed=seed))
        sender: Any = SimpleNamespace(workbench=bench, client=client, reply=RecordDict(), simulated=True)
        arrays, counts, records = summed_reply(sender, server, trained, metrics, dict(config))
        content = {**dict(records), "arrays": to_record(arrays), "metrics": MetricRecord(counts)}
        grid.seen.append(content)
        return Message(RecordDict(content), reply_to=message)

    grid._answer = summed
    return grid


def two_hosts(grid: Any) -> Any:
    def send_and_reduce(messages: Iterable[Message], reducer: Callable[[], Any]) -> list[Message]:
        reducers = reducer(), reducer()
        for reply in grid.send_and_receive(messages):
            reducers[reply.metadata.src_node_id % 2].add(reply)
        return [*reducers[0].replies(), *reducers[1].replies()]

    grid.send_and_reduce, grid.to_record = send_and_reduce, to_record
    return grid


def run(
    fakes: Any, grid: Any, folder: Path, bits: int = 20, privacy: Any = None, **federation: Any
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]], Any]:
    given = {"strategy": "fedavg", "guards": {"norm_multiple": 0}} | federation
    settings = fakes.make_settings(**given)
    privacy = PrivacySettings(sum_bits=bits, update_norm=NORM, **(privacy or {}))
    state = LoopState(fakes.model_arrays())
    result = fakes.make_loop(grid, folder, settings.model_copy(update={"privacy": privacy})).run(state)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {name: array.numpy() for name, array in state.chosen()[0].items()}, records, result


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_the_outcome_is_that_of_plain_rounds(fakes: Any, tmp_path: Path, strategy: str) -> None:
    """To the resolution of 20 bits; and to the last bit whether hosts add up or the server does."""

    def fail(client: int, stage: str, round_: int) -> str | None:
        return "out of luck" if client % 5 == round_ % 5 and stage == "train" else None

    grids = {
        "plain": fakes.FakeGrid(),
        "server": summing(fakes.FakeGrid()),
        "hosts": summing(two_hosts(fakes.FakeGrid())),
    }
    outcomes = {}
    for name, grid in grids.items():
        grid.fail = fail
        outcomes[name] = run(fakes, grid, tmp_path / name, 0 if name == "plain" else 20, strategy=strategy)
    plain, server, hosts = outcomes.values()
    for name, array in plain[0].items():
        np.testing.assert_array_equal(server[0][name], hosts[0][name])
        np.testing.assert_allclose(server[0][name], array, atol=2e-3)
    assert any((server[0][name] != array).any() for name, array in plain[0].items())  # they are integers indeed
    assert server[2] == hosts[2]
    for one, other, before in zip(server[1], hosts[1], plain[1], strict=True):
        assert {**one, "seconds": 0, "phases": {}} == {**other, "seconds": 0, "phases": {}}
        assert (one["failed"], one["clients"]) == (before["failed"], before["clients"])
        assert one["train"].pop("clipped") == 0
        assert one["train"] == pytest.approx(before["train"], rel=1e-3)
        if before["validation"]:
            assert one["validation"] == pytest.approx(before["validation"], abs=1e-3)
    assert any(record["failed"] for record in server[1])


def test_the_server_gets_no_number_of_one_client(fakes: Any, tmp_path: Path) -> None:
    """A reply holds integers, and one metric, which says that it is one client's; nobody's rank is written down."""
    grid = summing(fakes.FakeGrid())
    run(fakes, grid, tmp_path)
    assert grid.seen
    for content in grid.seen:
        assert dict(content["metrics"]) == {"num-clients": 1}
        assert all(array.dtype.kind in "iu" for array in unpack(packed_bytes(content["arrays"])).values())
    assert (tmp_path / "clients.csv").read_text().splitlines() == ["client,split,personal,common"]


def test_row_wise_averages_by_the_numbers_of_clients(fakes: Any, tmp_path: Path) -> None:
    """With equal weights that is the row-wise mean of the plain rounds."""

    class Rows(fakes.FakeGrid):  # type: ignore[name-defined, misc]
        """Clients of weight 1 that change every row of the table but the first and one that is their own."""

        def _train(self, client: int, round_: int, arrays: dict[str, Any], private: bool) -> dict[str, Any]:
            content: dict[str, Any] = super()._train(client, round_, arrays, private)
            new = {name: array.copy() for name, array in unpack(packed_bytes(content["arrays"])).items()}
            left = [0, 1 + (client + fakes.FIRST_NODE) % 4]
            new["item"][left] = arrays["item"][left]
            content["arrays"], content["metrics"]["num-examples"] = to_record(new), 1
            return content

    # Row r is touched by all but a quarter of the clients; the plain mean would move it by three quarters of that.
    once = {"num_rounds": 1, "client_weight": "equal"}
    inside = {"strategy": "rowwise", "strategy_parameters": {"strategy": "fedavg", "table": "item"}, **once}
    plain, *_ = run(fakes, Rows(), tmp_path / "plain", 0, **inside)
    summed, *_ = run(fakes, summing(Rows(), rows=True), tmp_path / "summed", 20, **inside)
    mean, *_ = run(fakes, summing(Rows(), rows=True), tmp_path / "mean", 20, **once)
    for name, array in plain.items():
        np.testing.assert_allclose(summed[name], array, atol=3e-5)
    assert np.abs(mean["item"] - plain["item"]).max() > 0.02


@pytest.mark.parametrize("name", ["krum", "fedmedian", "fedtrimmedavg", "robust-rows", "dp-client-fixed", "qfedavg"])
def test_who_needs_single_replies_is_refused_with_the_alternatives(fakes: Any, tmp_path: Path, name: str) -> None:
    parameters = {"qfedavg": {"client_learning_rate": 0.1}}
    parameters["dp-client-fixed"] = {"noise_multiplier": 1.0, "clipping_norm": 1.0, "num_sampled_clients": 5}
    with pytest.raises(FedMoEError, match=r"sum_bits: .* needs every client's reply.*use fedavg, .*sum_bits to 0"):
        run(fakes, fakes.FakeGrid(), tmp_path, strategy=name, strategy_parameters=parameters.get(name, {}))


def test_row_wise_is_content_with_sums_only_where_it_is_told() -> None:
    inner = content_with_sums(RowWise(FedAvg()))
    assert not needs_every_reply(inner)
    assert needs_every_reply(RowWise(FedAvg()))


def test_a_strategy_may_not_ask_clients_beside_the_sum(fakes: Any, tmp_path: Path) -> None:
    for which, message in (("asks", "asks clients beside the round"), ("parts", "sends clients different models")):
        with pytest.raises(FedMoEError, match=message):
            run(fakes, summing(fakes.FakeGrid()), tmp_path / which, strategy=f"own_questions:{which.title()}")


def test_a_reply_that_does_not_fit_is_refused_and_named(fakes: Any, tmp_path: Path) -> None:
    failures = []
    for folder, made in (("server", lambda grid: grid), ("hosts", two_hosts)):
        grid = summing(made(fakes.FakeGrid()))
        answer = grid._answer

        def spoilt(message: Message, answer: Callable[[Message], Message] = answer) -> Message:
            reply = answer(message)
            if message.metadata.message_type == "train" and message.metadata.dst_node_id % 5 == 0:
                arrays = unpack(packed_bytes(reply.content["arrays"]))
                reply.content["arrays"] = to_record(arrays | {"whole": np.ones(3, np.float32)})
            elif message.metadata.message_type == "train" and message.metadata.dst_node_id % 5 == 1:
                del reply.content["sum"]
            return reply

        grid._answer = spoilt
        _, records, result = run(fakes, grid, tmp_path / folder)
        assert result.status == "completed"
        failures.append([record["failed"] for record in records])
    assert failures[0] == failures[1]
    refused = {failure["reason"] for failure in sum(failures[0], []) if failure["kind"] == "refused"}
    assert any(reason.startswith("parameter 'whole' must be integers") for reason in refused)
    assert any(reason.startswith("it is no sum of integers") for reason in refused)


def test_bytes_are_those_of_the_two_vectors(fakes: Any, tmp_path: Path) -> None:
    """5 clients of 20 bits: a ring of 23. Two vectors: rows of the table touched, and digits, 5 x 3 + 3 + 1 numbers."""
    grid = summing(fakes.FakeGrid(), rows=True)
    _, records, _ = run(fakes, grid, tmp_path, num_rounds=1, evaluate_every=0)
    numbers = 1 + 5  # the weight, and the four metrics with the share that was clipped
    digits = -(-(24 + 24 + 7) // 19)  # the largest weight, 100, has 7 bits
    entries = 5 + numbers * digits + 4 * 3 + 3 + 1
    assert records[0]["bytes_up"] == 5 * -(-entries * 23 // 8)


def test_the_largest_weight_follows_from_the_settings(fakes: Any) -> None:
    def weight(training: dict[str, Any], **federation: Any) -> int:
        return largest_weight(Settings.model_validate({"training": training, "federation": federation}))

    assert weight({}) == 100  # two windows of 50 targets
    assert weight({"windows": "latest"}) == 50
    assert weight({"max_windows": 0}) == 100_000
    assert weight({"max_windows": 0}, guards={"max_examples": 700}) == 700
    assert weight({}, client_weight="sqrt") == 100
    assert weight({"windows": "latest"}, client_weight="sqrt") == 71
    assert weight({}, client_weight="equal") == 1


def test_errors_alone_have_no_mean(fakes: Any) -> None:
    total = ReplySum(Terms(16, 3, 1.0, 1), {})
    assert total.replies() == total.mean({}) == []


def test_noise_of_the_clients_adds_up_and_nothing_else_is_sent(fakes: Any, tmp_path: Path) -> None:
    """20 clients of whom 10 would do: twice the noise of 10. No metric, no weight, no row says who touched what."""
    noise = 1.5
    spread = []
    for number in range(2):
        plain, noisy = (
            run(
                fakes,
                summing(fakes.FakeGrid(20), rows=True, seed=number),
                tmp_path / f"{number}{privacy}",
                12,
                privacy={"noise_multiplier": noise, "side": "distributed"} if privacy else {},
                num_rounds=1,
                client_fraction=1.0,
                client_weight="equal",
                evaluate_every=0,
            )
            for privacy in (False, True)
        )
        spread += [(noisy[0][name] - array).ravel() for name, array in plain[0].items() if name != "item"]
        spread.append((noisy[0]["item"] - plain[0]["item"])[1:].ravel())
        assert (noisy[0]["item"][0] == plain[0]["item"][0]).all()  # the padding's row never moves
        assert noisy[1][0]["train"] == {}
    size = 5 * 3 + 3 + 1
    longest = np.sqrt(2047**2 + size / 4 + 2047 + np.sqrt(size) / 2)
    wanted = NORM / 2047 * noise * longest * np.sqrt(20 / 10) / 20
    found = np.concatenate(spread).std()
    assert 0.6 * wanted < found < 1.5 * wanted  # of 32 numbers


def test_a_reply_with_noise_holds_all_rows_and_no_metric(fakes: Any, tmp_path: Path) -> None:
    grid = summing(fakes.FakeGrid(10), rows=True)
    privacy = {"noise_multiplier": 1.0, "side": "distributed"}
    run(fakes, grid, tmp_path, 12, privacy=privacy, num_rounds=1, client_fraction=1.0, evaluate_every=0)
    replies = [content for content in grid.seen if "item" in unpack(packed_bytes(content["arrays"]))]
    assert len(replies) == 10
    for content in replies:
        arrays = unpack(packed_bytes(content["arrays"]))
        assert content["sum"]["metrics"] == "[]"
        assert arrays["item/rows"].tolist() == [1, 2, 3, 4]
        assert (arrays["item"] != 0).all(axis=1).any() and (arrays["numbers"] == replies_numbers(replies)).all()


def replies_numbers(replies: list[dict[str, Any]]) -> np.ndarray:
    """The digits of the weight, which must be the same for all."""
    return unpack(packed_bytes(replies[0]["arrays"]))["numbers"]
