"""The round loop: cohorts, failures, evaluation, early stopping, the best model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedmoe.errors import FedMoEError
from fedmoe.wire import packed_bytes, to_record, unpack
from fedmoe_server.report.report import write_report
from fedmoe_server.report.run_folder import averaged
from fedmoe_server.rounds.checkpoints import find_checkpoint, load_checkpoint
from fedmoe_server.rounds.record import LoopState, Result
from strategies import state_arrays


def run(fakes: Any, grid: Any, folder: Path, **federation: Any) -> Result:
    return run_with_state(fakes, grid, folder, **federation)[0]


def run_with_state(fakes: Any, grid: Any, folder: Path, **federation: Any) -> tuple[Result, LoopState]:
    loop = fakes.make_loop(grid, folder, fakes.make_settings(**federation))
    state = LoopState(fakes.model_arrays())
    return loop.run(state), state


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_does_its_rounds_and_writes_one_line_each(fakes: Any, tmp_path: Path) -> None:
    result = run(fakes, fakes.FakeGrid(), tmp_path)
    records = lines(tmp_path)
    assert [r["round"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["phase"] for r in records] == ["warmup"] * 2 + ["main"] * 4
    assert [r["validation"] is not None for r in records] == [False, True] * 3
    assert records[2]["clients"] == 5 and records[2]["failed"] == []
    assert "gate" in records[1]["shared"] and "gate" not in records[2]["shared"]
    assert {"loss", "gate", "router-visual", "router-text"} <= set(records[0]["train"])
    assert result.rounds == 6 and not result.stopped_early
    assert {kind: set(metrics) for kind, metrics in result.test.items()} == {
        kind: {"hr@10", "ndcg@10"} for kind in ("personalised", "global")
    }


def test_the_same_seed_gives_the_same_numbers(fakes: Any, tmp_path: Path) -> None:
    (first, one), (second, other) = (run_with_state(fakes, fakes.FakeGrid(), tmp_path / name) for name in "ab")
    for name, array in one.chosen()[0].items():
        assert array.data == other.chosen()[0][name].data
    assert first.test == second.test


def test_the_private_group_does_not_change_on_the_server(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    state = LoopState(fakes.model_arrays())
    loop = fakes.make_loop(grid, tmp_path, fakes.make_settings(warmup_rounds=0))
    before = state.arrays["gate"].data
    loop.run(state)
    assert state.arrays["gate"].data == before
    assert len(grid.gates) > 0


def test_traffic_is_counted_per_client(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    run(fakes, grid, tmp_path, num_rounds=1, evaluate_every=0, warmup_rounds=0)
    (record,) = lines(tmp_path)
    arrays = {name: array.numpy() for name, array in fakes.model_arrays().items()}
    everything = to_record(arrays).count_bytes()
    del arrays["gate"]
    shared = to_record(arrays).count_bytes()
    assert record["bytes_down"] > 5 * everything  # the config travels as well
    assert record["bytes_down"] < 5 * (everything + 300)
    assert 5 * shared < record["bytes_up"] < 5 * (shared + 300)


def test_validation_uses_one_fixed_sample_and_test_everybody(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    result = run(fakes, grid, tmp_path)
    samples = {
        round_: sorted(c for stage, c, r, split in grid.sent[:-14] if stage == "evaluate" and r == round_)
        for round_ in (2, 4, 6)
    }
    assert len(samples[2]) == 4 and samples[2] == samples[4] == samples[6]
    final = [(split, client) for stage, client, _, split in grid.sent[-14:] if stage == "evaluate"]
    wanted = {"validation": samples[2], "test": range(10)}
    assert sorted(final) == sorted((split, client) for split, clients in wanted.items() for client in clients)
    assert (result.final_clients, result.sampled) == (10, 4)
    assert averaged(result) == "all users, on validation over a sample of 4"


def test_the_sample_changes_by_one_when_a_client_leaves(fakes: Any, tmp_path: Path) -> None:
    samples = []
    for clients in (10, 9):
        loop = fakes.make_loop(fakes.FakeGrid(clients), tmp_path / str(clients), fakes.make_settings())
        samples.append(set(loop._sample()))
    assert len(samples[0] - samples[1]) <= 1


def test_the_last_round_is_evaluated_too(fakes: Any, tmp_path: Path) -> None:
    run(fakes, fakes.FakeGrid(), tmp_path, num_rounds=5, evaluate_every=3)
    assert [r["round"] for r in lines(tmp_path) if r["validation"]] == [3, 5]


def test_evaluate_every_zero_evaluates_only_at_the_end(fakes: Any, tmp_path: Path) -> None:
    result = run(fakes, fakes.FakeGrid(), tmp_path, evaluate_every=0)
    assert all(r["validation"] is None for r in lines(tmp_path))
    assert result.best_round == 6 and result.validation["personalised"]["ndcg@10"] is not None


def test_patience_stops_the_run_and_the_best_model_comes_back(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    scores = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}  # an equal score is no better one
    grid.score = lambda round_: scores[round_]
    state = LoopState(fakes.model_arrays())
    settings = fakes.make_settings(num_rounds=10, evaluate_every=1, patience=2)
    loop = fakes.make_loop(grid, tmp_path, settings)
    kept: dict[int, bytes] = {}
    original = loop.tracker.round
    loop.tracker.round = lambda record: (kept.update({record.round: state.arrays["item"].data}), original(record))
    result = loop.run(state)
    assert (result.rounds, result.best_round, result.stopped_early) == (4, 2, True)
    assert state.chosen()[0]["item"].data == kept[2] != kept[4]
    # The final evaluation asks with the best round's number: its schedule is the one that holds for these arrays.
    assert {r for stage, _, r, split in grid.sent if split == "test"} == {2}
    assert [r["best"] for r in lines(tmp_path)] == [True, True, False, False]


def test_a_failed_client_is_named_and_the_round_goes_on(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    grid.fail = lambda client, stage, round_: (
        "ValueError: bad luck\nTraceback" if (client, stage) == (3, "train") else None
    )
    console = fakes.quiet_console()
    loop = fakes.make_loop(grid, tmp_path, fakes.make_settings(client_fraction=1.0), console=console)
    result = loop.run(LoopState(fakes.model_arrays()))
    failed = lines(tmp_path)[0]["failed"]
    assert failed == [
        {
            "client": 3,
            "node": fakes.FIRST_NODE + 3,
            "stage": "train",
            "reason": "ValueError: bad luck",
            "kind": "raised",
        }
    ]
    assert result.failed_replies == 6
    assert "round 1: 1 failed - client 3 (train): ValueError: bad luck\n" in console.file.getvalue()


def test_a_client_that_stays_silent_counts_as_failed(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.SavingGrid()
    grid.silent = {4}
    run(fakes, grid, tmp_path, num_rounds=1, client_fraction=1.0)
    assert [(f["client"], f["reason"]) for f in lines(tmp_path)[0]["failed"]][:1] == [(4, "no reply in time")]


def test_a_refused_reply_counts_as_failed(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    honest = grid._train

    def poisoned(client: int, round_: int, arrays: Any, private: bool) -> Any:
        content = honest(client, round_, arrays, private)
        if client == 2:
            content["metrics"]["loss"] = math.nan
        return content

    grid._train = poisoned
    run(fakes, grid, tmp_path, num_rounds=1, client_fraction=1.0)
    (failed,) = lines(tmp_path)[0]["failed"]
    assert failed["client"] == 2 and failed["kind"] == "refused" and failed["reason"].startswith("metric 'loss'")


def test_a_round_with_too_few_replies_fails_and_the_run_goes_on(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    grid.fail = lambda client, stage, round_: "OSError: disk gone" if round_ in (2, 3) and client != 0 else None
    state, console = LoopState(fakes.model_arrays()), fakes.quiet_console()
    loop = fakes.make_loop(grid, tmp_path, fakes.make_settings(client_fraction=1.0), console=console)
    models: dict[int, dict[str, bytes]] = {}
    original = loop.tracker.round
    loop.tracker.round = lambda record: (
        models.update({record.round: {name: bytes(array.data) for name, array in state.arrays.items()}}),
        original(record),
    )
    result = loop.run(state)
    assert models[1] == models[2] == models[3] != models[4]
    first, second, third, fourth = lines(tmp_path)[:4]
    assert first["failure"] is None is fourth["failure"]
    assert second["failure"].startswith("round 2, train: only 1 of 10 clients replied")
    assert "client 1 (train): OSError: disk gone; client 2 (train):" in second["failure"]
    assert "and 6 more" in second["failure"] and "min_reply_fraction" in second["failure"]
    assert (second["train"], second["validation"], second["best"]) == ({}, None, False)
    assert len(third["failed"]) == 9
    assert result.rounds == 6 and result.test["personalised"]["ndcg@10"] is not None
    assert "round 2 failed, the model stays as it was: round 2, train: only 1" in console.file.getvalue()


def test_too_many_failed_rounds_in_a_row_end_the_run(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    grid.fail = lambda client, stage, round_: "OSError: disk gone" if round_ not in (1, 4) and client else None
    settings = {"num_rounds": 9, "client_fraction": 1.0, "evaluate_every": 0, "guards": {"max_failed_rounds": 3}}
    with pytest.raises(FedMoEError, match=r"^round 7, train: only 1 .*3 failed rounds in a row, .*max_failed_rounds"):
        run(fakes, grid, tmp_path, **settings)
    assert [record["round"] for record in lines(tmp_path) if record["failure"]] == [2, 3, 5, 6, 7]


def test_a_model_that_cannot_be_judged_is_no_failed_round(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    grid.fail = lambda client, stage, round_: "OSError: disk gone" if stage == "evaluate" and round_ < 5 else None
    settings = fakes.make_settings(client_fraction=1.0, evaluate_every=1, guards={"max_failed_rounds": 3})
    console = fakes.quiet_console()
    result = fakes.make_loop(grid, tmp_path, settings, console=console).run(LoopState(fakes.model_arrays()))
    assert result.best_round >= 5
    records = lines(tmp_path)
    assert [record["failure"] for record in records] == [None] * 6
    assert [record["round"] for record in records if record["validation_failure"]] == [1, 2, 3, 4]
    assert "round 1: the model could not be judged: round 1, validation: only 0 of" in console.file.getvalue()


@pytest.mark.parametrize("strategy", ["fedadam", "fedmedian"])
def test_all_replies_bad_leave_model_and_strategy_bit_identical(fakes: Any, tmp_path: Path, strategy: str) -> None:
    grid = fakes.FakeGrid()
    honest = grid._train

    def poisoned(client: int, round_: int, arrays: Any, private: bool) -> Any:
        content = honest(client, round_, arrays, private)
        if round_ == 2:
            content["arrays"] = to_record(
                unpack(packed_bytes(content["arrays"])) | {"item": np.full((5, 3), np.nan, np.float32)}
            )
        return content

    grid._train = poisoned
    state = LoopState(fakes.model_arrays())
    settings = fakes.make_settings(strategy=strategy, num_rounds=2, evaluate_every=0, client_fraction=1.0)
    loop = fakes.make_loop(grid, tmp_path, settings)
    loop.one_round(state)
    before = {name: bytes(array.data) for name, array in state.arrays.items()}
    memory = {name: value.tobytes() for name, value in state_arrays(loop.strategy).items() if "current" not in name}
    loop.one_round(state)
    assert {name: bytes(array.data) for name, array in state.arrays.items()} == before
    after = {name: value.tobytes() for name, value in state_arrays(loop.strategy).items() if "current" not in name}
    assert after == memory
    record = state.history[1].to_json()
    assert record["failure"].startswith("round 2, train: only 0 of 10 clients replied")
    assert all("'item' has a value that is not finite" in failure["reason"] for failure in record["failed"])


def test_a_strategy_that_aggregates_nothing_fails_the_round(fakes: Any, tmp_path: Path) -> None:
    few = {"max_failed_rounds": 9}
    with pytest.raises(FedMoEError, match="the strategy aggregated nothing .all rounds failed"):
        run(fakes, fakes.FakeGrid(2), tmp_path, strategy="bulyan", client_fraction=1.0, guards=few)
    assert {record["failure"] for record in lines(tmp_path)} == {
        f"round {number}, train: the strategy aggregated nothing" for number in range(1, 7)
    }


def test_outliers_and_dropped_replies_are_named(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    honest = grid._train

    def boosted(client: int, round_: int, arrays: Any, private: bool) -> Any:
        content = honest(client, round_, arrays, private)
        if client == 3:
            content["arrays"] = to_record(
                unpack(packed_bytes(content["arrays"])) | {"item": np.full((5, 3), 1e30, np.float32)}
            )
        return content

    grid._train = boosted
    answer = grid.send_and_receive
    grid.send_and_receive = lambda messages, timeout=None: [*(replies := list(answer(messages))), replies[0]]
    run(fakes, grid, tmp_path, num_rounds=1, client_fraction=1.0, evaluate_every=0)
    (record,) = lines(tmp_path)
    (clipped,) = record["clipped"]
    assert (clipped["client"], clipped["node"]) == (3, fakes.FIRST_NODE + 3)
    assert clipped["norm"] == pytest.approx(15**0.5 * 1e30, rel=1e-5) and clipped["bound"] < 100
    assert record["dropped"] == [{"client": 9, "node": fakes.FIRST_NODE + 9}]
    assert record["failed"] == [] and record["failure"] is None
    text = write_report(tmp_path).read_text()
    assert "| scaled down: update longer than the bound | 1 | 3 | 1 to 1 |" in text
    assert "| dropped: late or repeated | 1 | 9 | 1 to 1 |" in text


def test_metrics_without_ndcg_are_refused(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    honest = grid._evaluate

    def other(round_: int, arrays: Any) -> Any:
        content = honest(round_, arrays)
        del content["metrics"]["ndcg@10"]
        return content

    grid._evaluate = other
    with pytest.raises(FedMoEError, match=r"round 2, validation: the clients reported no finite 'ndcg@10'"):
        run(fakes, grid, tmp_path)


def test_arrays_keep_their_type(fakes: Any, tmp_path: Path) -> None:
    arrays, _ = run_with_state(fakes, fakes.FakeGrid(), tmp_path)[1].chosen()
    assert {array.dtype for array in arrays.values()} == {"float32"}
    assert all(np.isfinite(array.numpy()).all() for array in arrays.values())


class Sharpening(FedAvg):
    """Evaluates its model times a factor of its own, which grows with each training round."""

    def __init__(self, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.factor = 1.0

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
        mine = ArrayRecord({name: Array(array.numpy() * np.float32(self.factor)) for name, array in arrays.items()})
        return super().configure_evaluate(server_round, mine, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.factor *= 3.0
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("stopped", [False, True])
def test_final_figures_are_those_of_the_best_round_with_its_strategy(fakes: Any, tmp_path: Path, stopped: bool) -> None:
    settings = fakes.make_settings(strategy=f"{__name__}:Sharpening", evaluate_every=1, evaluate_clients=0)
    loop = fakes.make_loop(fakes.SavingGrid(), tmp_path / "a", settings)
    state = LoopState(fakes.model_arrays())
    if stopped:
        while state.round < 4:
            loop.one_round(state)
        loop.checkpoints.save(state, loop.strategy, loop.grid)
        loop = fakes.make_loop(fakes.SavingGrid(), tmp_path / "b", settings)
        checkpoint = load_checkpoint(find_checkpoint(tmp_path / "a"), fakes.model_arrays())
        state = checkpoint.restore(loop.strategy, loop.grid, needs_clients=True)
    result = loop.run(state)
    scores = [record.validation["ndcg@10"] for record in state.history if record.validation]
    assert result.best_round == 1 and scores[0] > 1.5 * scores[-1], "or the state would not matter"
    assert result.validation["personalised"]["ndcg@10"] == pytest.approx(scores[0])


class AskingFirst(FedAvg):
    """Has everybody trained once more, before the round, for nothing."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
        content = RecordDict({"arrays": arrays, "config": config})
        grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])
        return super().configure_train(server_round, arrays, config, grid)


def test_what_a_strategy_asks_beside_the_round_is_counted(fakes: Any, tmp_path: Path) -> None:
    for name, strategy in (("plain", "fedavg"), ("asking", f"{__name__}:AskingFirst")):
        run(fakes, fakes.FakeGrid(), tmp_path / name, num_rounds=1, evaluate_every=0, strategy=strategy)
    (plain,), (asking,) = lines(tmp_path / "plain"), lines(tmp_path / "asking")
    for bytes_ in ("bytes_down", "bytes_up"):
        assert asking[bytes_] == 2 * plain[bytes_] > 0
