"""The ServerApp from the run config to the run folder, around stand-ins for data and model."""

from __future__ import annotations

import json
import logging
from collections import namedtuple
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flwr.app import Context, RecordDict

import fedmoe_server.app as server_app
from fedmoe.errors import FedMoEError
from fedmoe.modalities import GROUPS
from fedmoe.settings import Settings
from fedmoe_server.report.report import write_report
from fedmoe_server.rounds.checkpoints import find_checkpoint, load_checkpoint

Interactions = namedtuple("Interactions", "num_users num_items")


class Dataset(NamedTuple):
    interactions: Interactions
    dropped_users: int
    reading: str = ""
    new: None = None

    def all_fingerprints(self) -> dict[str, str]:
        return {"histories": "a"}


@pytest.fixture
def prepared(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: array.numpy() for name, array in fakes.model_arrays().items()}
    groups = {group: fakes.PARAMETERS.get(group, []) for group in GROUPS}
    monkeypatch.setattr(server_app, "load_dataset", lambda settings: Dataset(Interactions(10, 5), 2))
    monkeypatch.setattr(server_app, "initial_arrays", lambda settings, dataset: arrays)
    monkeypatch.setattr(server_app, "parameter_groups", lambda settings, dataset: groups)


def call(grid: Any, settings: Settings, run_dir: Path | str = "", resume: Path | str = "") -> None:
    config = {
        "settings": settings.model_dump_json(),
        "run_dir": str(run_dir),
        "resume": str(resume),
        "simulated": True,
    }
    server_app.app(grid=grid, context=Context(1, 1, {}, RecordDict(), config))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("prepared")
def test_a_run_leaves_its_folder_complete(fakes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = fakes.make_settings().model_copy(update={"save_dir": tmp_path})
    call(fakes.SavingGrid(), settings)
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith("-test")
    assert files(folder) == {
        "settings.yaml", "run.json", "metrics.jsonl", "result.json", "clients.csv", "tensorboard", "checkpoints",
    }  # fmt: skip
    write_report(folder)
    assert {"report.md", "loss.png", "ranking.png", "gate.png"} <= files(folder)
    out = capsys.readouterr().out
    assert out.startswith(
        "test starts: 6 rounds, 50% of 10 clients a round, 2 users with fewer than 5 items left out, 5 items, fedadam; "
    )
    assert "round 6/6" in out and "report: " not in out and "Sampled" not in out


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("by", ["run folder", "checkpoint"])
def test_a_resumed_run_ends_like_the_uninterrupted_one(fakes: Any, tmp_path: Path, by: str) -> None:
    settings = fakes.make_settings(guards={"max_failed_rounds": 1})
    call(fakes.SavingGrid(), settings, tmp_path / "whole")
    broken = fakes.SavingGrid()
    broken.fail = lambda client, stage, round_: "OSError: power cut" if round_ == 5 else None
    with pytest.raises(FedMoEError, match="round 5, train"):
        call(broken, settings, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "result.json").read_text())["status"] == "failed"
    source = tmp_path / "cut"
    call(fakes.SavingGrid(), settings, resume=source if by == "run folder" else source / "checkpoints/round-000002")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "cut")]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    histories = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert len(histories[0]) == len(histories[1]) == 6
    ends = [load_checkpoint(find_checkpoint(tmp_path / n), fakes.model_arrays()) for n in ("whole", "cut")]
    assert {k: a.data for k, a in ends[0].state.arrays.items()} == {k: a.data for k, a in ends[1].state.arrays.items()}


@pytest.mark.usefixtures("prepared")
def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(fakes: Any, tmp_path: Path) -> None:
    settings = fakes.make_settings(guards={"max_failed_rounds": 1})
    call(fakes.SavingGrid(), settings, tmp_path / "whole")
    broken = fakes.SavingGrid()
    broken.fail = lambda client, stage, round_: "OSError: power cut" if round_ == 2 else None
    with pytest.raises(FedMoEError, match="round 2, train"):
        call(broken, settings, tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("checkpoints/round-*"))
    call(fakes.SavingGrid(), settings, tmp_path / "cut", resume=tmp_path / "cut")
    whole, again = (tmp_path / name / "checkpoints/round-000006/arrays.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == again.read_bytes()
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.usefixtures("prepared")
def test_a_run_in_which_every_round_failed_has_no_result(fakes: Any, tmp_path: Path) -> None:
    settings = fakes.make_settings(guards={"max_failed_rounds": 50})
    broken = fakes.SavingGrid()
    broken.fail = lambda client, stage, round_: "OSError: power cut" if stage == "train" else None
    with pytest.raises(FedMoEError, match="all rounds failed"):
        call(broken, settings, tmp_path / "none")
    assert json.loads((tmp_path / "none" / "result.json").read_text())["status"] == "failed"


@pytest.mark.usefixtures("prepared")
def test_a_resume_can_go_into_another_folder(fakes: Any, tmp_path: Path) -> None:
    call(fakes.SavingGrid(), fakes.make_settings(num_rounds=2), tmp_path / "a")
    call(fakes.SavingGrid(), fakes.make_settings(num_rounds=4), tmp_path / "b", tmp_path / "a")
    assert len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) == 4
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == 2
    assert find_checkpoint(tmp_path / "a").name == "round-000002"


@pytest.mark.usefixtures("prepared")
def test_nothing_is_written_when_something_is_wrong_at_the_start(fakes: Any, tmp_path: Path) -> None:
    settings = fakes.make_settings(strategy="fedadm")
    with pytest.raises(FedMoEError, match="fedadm"):
        call(fakes.SavingGrid(), settings, tmp_path / "run")
    with pytest.raises(FedMoEError, match="no checkpoint in"):
        call(fakes.SavingGrid(), fakes.make_settings(), tmp_path / "run", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("prepared")
def test_an_unexpected_error_is_recorded_and_comes_out(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server_app.ServerLoop, "run", broken)
    level = logging.getLogger("flwr").level
    with pytest.raises(RuntimeError, match="a bug"):
        call(fakes.SavingGrid(), fakes.make_settings(), tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["error"] == "RuntimeError: a bug"
    assert logging.getLogger("flwr").level == level


@pytest.mark.usefixtures("prepared")
def test_without_private_state_a_resume_after_warmup_is_refused(fakes: Any, tmp_path: Path) -> None:
    call(fakes.FakeGrid(), fakes.make_settings(num_rounds=4), tmp_path)
    before = (tmp_path / "result.json").read_text()
    with pytest.raises(FedMoEError, match="holds no private state of the clients"):
        call(fakes.FakeGrid(), fakes.make_settings(), resume=tmp_path)
    assert (tmp_path / "result.json").read_text() == before
    call(fakes.FakeGrid(), fakes.make_settings(), resume=tmp_path / "checkpoints" / "round-000002")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
