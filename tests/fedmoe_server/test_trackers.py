"""Several trackers at once, of ours and of one's own, and what becomes of one that fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedmoe.errors import FedMoEError
from fedmoe.help import help_text
from fedmoe.loading import load_settings
from fedmoe.settings import Settings
from fedmoe_server.report.trackers import MLFLOW_RUN, RunTracker, Tracked, Trackers, check_trackers
from fedmoe_server.report.tracking import Tracker
from fedmoe_server.rounds.record import Result, RoundRecord

FIGURES = {"personalised": {"ndcg@10": 0.25}, "global": {"ndcg@10": 0.125}}
DONE = Result("completed", rounds=2, best_round=2, validation=FIGURES, test=FIGURES)


class Own(RunTracker):
    """Writes what it is told into a file; breaks in the round that it is told to break in."""

    def __init__(self, run: Tracked, name: str = "own", breaks: int = 0) -> None:
        self.path, self.breaks = run.folder / name, breaks

    def round(self, number: int, values: Any) -> None:
        if number == self.breaks:
            raise ConnectionError("nobody listens")
        with self.path.open("a") as file:
            file.write(f"{number} {values['train/loss']}\n")

    def end(self, status: str, values: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{status} {json.dumps(values)}\n")


OWN = f"{__name__}:Own"


def record(number: int, **more: Any) -> RoundRecord:
    return RoundRecord(number, train={"loss": 4.5, "gate": None}, seconds=2.0, **more)


def tracked(folder: Path, tracking: Any, fakes: Any, history: tuple[RoundRecord, ...] = ()) -> Tracker:
    settings = fakes.make_settings().model_copy(
        update={"tracking": load_settings([], {"tracking": tracking})[0].tracking}
    )
    return Tracker(folder, settings, history, fakes.quiet_console())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_several_trackers_take_down_the_same_rounds_and_the_end(fakes: Any, tmp_path: Path) -> None:
    tracker = tracked(tmp_path, {"tensorboard": None, "csv": {}, OWN: {"name": "mine"}}, fakes)
    tracker.round(record(1))
    tracker.round(record(2, validation={"ndcg@10": 0.25}))
    tracker.finish(DONE, 4.0)
    first, second = rows(tmp_path)
    assert (first["round"], first["train/loss"], first["validation/ndcg@10"], first["round/failed"]) == (
        "1",
        "4.5",
        "",
        "0",
    )
    assert second["validation/ndcg@10"] == "0.25"
    assert "train/gate" not in first  # nobody has measured it
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    one, two, end = (tmp_path / "mine").read_text().splitlines()
    assert (one, two) == ("1 4.5", "2 4.5")
    status, _, figures = end.partition(" ")
    assert status == "completed"
    assert json.loads(figures)["final/test/ndcg@10"] == 0.25
    assert json.loads(figures)["final/test/global-ndcg@10"] == 0.125


def test_a_resume_writes_the_table_anew(fakes: Any, tmp_path: Path) -> None:
    tracker = tracked(tmp_path, "csv", fakes)
    for number in (1, 2, 3):
        tracker.round(record(number))
    tracker.close()
    tracker = tracked(tmp_path, "csv", fakes, (record(1, validation={"ndcg@10": 0.5}),))
    tracker.round(record(2))
    tracker.fail("the end")
    assert [(row["round"], row["validation/ndcg@10"]) for row in rows(tmp_path)] == [("1", "0.5"), ("2", "")]


def test_a_tracker_that_fails_is_left_out_and_named(fakes: Any, tmp_path: Path) -> None:
    tracker = tracked(tmp_path, {OWN: {"breaks": 2}, "csv": None}, fakes)
    for number in (1, 2, 3):
        tracker.round(record(number))
    tracker.close()
    said = tracker._progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("failed, and the run goes on without it: ConnectionError: nobody listens") == 1
    assert (tmp_path / "own").read_text() == "1 4.5\n"
    assert len(rows(tmp_path)) == 3


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["tracking=[tensorboard,csv]"], {"tensorboard": {}, "csv": {}}),
        (["tracking=csv"], {"csv": {}}),
        (["tracking=tensorboard, csv"], {"tensorboard": {}, "csv": {}}),
        (["tracking=null"], {}),
        (["tracking={mlflow: {experiment: films}}"], {"mlflow": {"experiment": "films"}}),
        ([], {"tensorboard": {}}),
    ],
)
def test_trackers_are_named_alone_in_a_list_or_with_arguments(given: list[str], meant: dict[str, Any]) -> None:
    settings, _ = load_settings(given)
    assert settings.tracking == meant
    assert Settings.model_validate_json(settings.model_dump_json()).tracking == meant
    assert "tracking = [tensorboard]" in help_text(["run"])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("cvs", "did you mean 'csv'"),
        (3, "tracking"),
        ({"csv": {"path": "x"}}, "tracking.csv: unknown 'path'"),
        ({OWN: {"nmae": "x"}}, "did you mean 'name'"),
        ("fedmoe.errors:FailureKind", "not a subclass of fedmoe_server.report.trackers.RunTracker"),
    ],
)
def test_a_wrong_tracker_is_one_line_before_the_run(given: Any, complaint: str) -> None:
    with pytest.raises(FedMoEError, match=complaint):
        check_trackers(load_settings([], {"tracking": given})[0])


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmoe_server.report.trackers.find_spec", lambda name: None)
    with pytest.raises(FedMoEError, match=r"tracking wandb needs the package wandb: pip install 'fedmoe\[wandb\]'"):
        check_trackers(load_settings(["tracking=wandb"])[0])


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Own, run: Tracked) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Own, "__init__", refuse)
    with pytest.raises(FedMoEError, match="tracking .*:Own: OSError: no room"):
        Trackers(Tracked(tmp_path, load_settings([f"tracking={OWN}"])[0]), print)


def test_mlflow_has_the_settings_the_rounds_and_the_end(fakes: Any, tmp_path: Path) -> None:
    client = pytest.importorskip("mlflow").MlflowClient
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = {"mlflow": {"experiment": "films", "tracking_uri": uri}}
    tracker = tracked(tmp_path, tracking, fakes)
    tracker.round(record(1, validation={"ndcg@10": 0.25}))
    tracker.close()
    number = (tmp_path / MLFLOW_RUN).read_text().strip()
    assert client(uri).get_run(number).info.status == "KILLED"
    tracker = tracked(tmp_path, tracking, fakes, (record(1),))
    tracker.round(record(2))
    tracker.finish(DONE, 4.0)
    run = client(uri).get_run(number)
    assert run.info.status == "FINISHED"
    assert run.data.params["federation.num_rounds"] == "6"
    assert run.data.metrics["validation/ndcg_at_10"] == run.data.metrics["final/test/ndcg_at_10"] == 0.25
    assert [metric.step for metric in client(uri).get_metric_history(number, "train/loss")] == [1, 2]


def test_wandb_keeps_a_run_offline(fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = tracked(tmp_path, "wandb", fakes)
    print("client 7 failed")  # what the terminal says does not go there
    tracker.round(record(1))
    tracker.finish(DONE, 4.0)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (kept,) = folder.glob("run-*.wandb")
    assert folder.name.endswith(tmp_path.name)
    assert b"validation/ndcg@10" in kept.read_bytes() and b"client 7" not in kept.read_bytes()
    assert not list(folder.glob("files/output.log"))
