"""The run folder's files and the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from fedmoe_server.report.progress import duration
from fedmoe_server.report.tracking import Tracker
from fedmoe_server.rounds.exchange import plain_metrics
from fedmoe_server.rounds.record import Failure, LoopState, RoundRecord


def record(number: int, validation: dict[str, float] | None = None, **other: Any) -> RoundRecord:
    values: dict[str, Any] = {
        "round": number,
        "phase": "main",
        "shared": ("embedding",),
        "clients": 188,
        "train": {"loss": 4.5, "gate": 0.125, "router-visual": 0.25, "router-text": 0.75},
        "validation": validation,
        "best": validation is not None,
        "bytes_down": 1000,
        "bytes_up": 900,
        "seconds": 2.0,
    }
    return RoundRecord(**{**values, **other})


def test_settings_are_written_as_resolved(fakes: Any, tmp_path: Path) -> None:
    settings = fakes.make_settings(num_rounds=3)
    Tracker(tmp_path, settings, console=fakes.quiet_console()).close()
    assert Settings.model_validate(yaml.safe_load((tmp_path / "settings.yaml").read_text())) == settings


def test_a_line_is_on_disk_as_soon_as_its_round_is_done(fakes: Any, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, fakes.make_settings(), console=fakes.quiet_console())
    tracker.round(record(1))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert RoundRecord.from_json(json.loads(line)) == record(1)
    tracker.close()


def test_events_are_scalars_of_every_round(fakes: Any, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, fakes.make_settings(), console=fakes.quiet_console())
    tracker.round(record(1))
    tracker.round(record(2, {"hr@10": 0.5, "ndcg@10": 0.25}))
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 4.5), (2, 4.5)]
    assert [(e.step, e.value) for e in events.Scalars("validation/hr_at_10")] == [(2, 0.5)]
    assert {"round/seconds", "round/bytes_up", "train/router-visual"} <= set(events.Tags()["scalars"])


def test_a_resume_cuts_metrics_back_and_hides_the_later_events(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The names of event files end with a number of this process, and files of one second are read by their names.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    tracker = Tracker(tmp_path, fakes.make_settings(), console=fakes.quiet_console())
    for number in (1, 2, 3):
        tracker.round(record(number))
    tracker.fail("stopped")
    tracker = Tracker(tmp_path, fakes.make_settings(), [record(1)], console=fakes.quiet_console())
    assert not (tmp_path / "result.json").exists()
    tracker.round(record(2, train={"loss": 1.0}))
    tracker.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["train"]["loss"]) for line in lines] == [(1, 4.5), (2, 1.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 4.5), (2, 1.0)]


def test_result_of_a_whole_run(fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "baselines.json").write_text('{"popularity": {"test": {"hr@10": 0.1}}}')
    loop = fakes.make_loop(fakes.FakeGrid(), tmp_path, fakes.make_settings())
    result = loop.run(LoopState(fakes.model_arrays()))
    loop.tracker.finish(result, 12.34)
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["status"], found["rounds"], found["best_round"]) == ("completed", 6, result.best_round)
    assert set(found["test"]["personalised"]) == set(found["test"]["global"]) == {"hr@10", "ndcg@10"}
    assert found["test"]["global"]["hr@10"] == result.test["global"]["hr@10"]
    assert found["baselines"]["popularity"]["test"]["hr@10"] == 0.1
    assert found["seconds"] == 12.3 and found["bytes_down"] > found["bytes_up"] > 0


def test_a_failed_run_says_why(fakes: Any, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, fakes.make_settings(), console=fakes.quiet_console())
    tracker.fail("round 2: nobody")
    assert json.loads((tmp_path / "result.json").read_text())["error"] == "round 2: nobody"


def test_baselines_that_are_no_json_are_named(fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "baselines.json").write_text("{")
    tracker = Tracker(tmp_path, fakes.make_settings(), console=fakes.quiet_console())
    with pytest.raises(FedMoEError, match=r"baselines\.json cannot be read"):
        tracker.fail("x")
    tracker.close()


def test_a_folder_that_cannot_be_written_is_named(fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(FedMoEError, match=f"{tmp_path}: cannot be written"):
        Tracker(tmp_path, fakes.make_settings(), console=fakes.quiet_console())


def test_a_file_gets_one_line_per_evaluation(fakes: Any, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=40)  # a narrow file: lines are not wrapped
    tracker = Tracker(tmp_path, fakes.make_settings(num_rounds=200), console=console)
    tracker.round(record(9))
    tracker.round(record(10, {"hr@10": 0.12345, "ndcg@10": 0.06}))
    tracker.round(record(11, failed=(Failure(17, 19, "train", "ValueError: [bold] is no markup"),)))
    tracker.close()
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "round  10/200  loss 4.5000  HR@10 0.1235  NDCG@10 0.0600 best  gate 0.125  router 0.25/0.75  188 clients  "
        "about 6 min 20 s left",
        "round 11: 1 failed - client 17 (train): ValueError: [bold] is no markup",
    ]


def test_a_plain_model_has_neither_gate_nor_router(fakes: Any, tmp_path: Path) -> None:
    console = fakes.quiet_console()
    tracker = Tracker(tmp_path, fakes.make_settings(), console=console)
    tracker.round(record(6, {"hr@10": 0.5, "ndcg@10": 0.25}, train={"loss": None}))
    tracker.close()
    assert console.file.getvalue().rstrip() == "round 6/6  loss -  HR@10 0.5000  NDCG@10 0.2500 best  188 clients"


def test_a_terminal_gets_a_live_display_that_goes_away(fakes: Any, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    tracker = Tracker(tmp_path, fakes.make_settings(num_rounds=20), console=console)
    tracker.round(record(9, {"hr@10": 0.12345, "ndcg@10": 0.06}, failed=(Failure(1, 1, "train", "OSError"),)))
    tracker.stage("test of the model")
    tracker._progress._bar.refresh()  # type: ignore[attr-defined]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("round 9/20  loss 4.5000", "test of the model", "HR@10 0.1235", "router 0.25/0.75", "1 failed"):
        assert text in shown
    tracker.close()
    tracker.close()
    assert console.file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # type: ignore[attr-defined]


def test_durations_and_numbers() -> None:
    assert [duration(s) for s in (0.25, 9.96, 59.2, 425, 12_000)] == [
        "0.2 s",
        "10 s",
        "59 s",
        "7 min 05 s",
        "3 h 20 min",
    ]
    assert plain_metrics({"a": 1, "b": float("nan"), "c": float("inf"), "d": [1.0, 2]}) == {
        "a": 1.0,
        "b": None,
        "c": None,
        "d/0": 1.0,
        "d/1": 2.0,
    }
    assert plain_metrics(None) == {}
