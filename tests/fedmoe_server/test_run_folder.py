"""A run folder that cannot be used is refused before anything is written."""

from __future__ import annotations

import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fedmoe.errors import FedMoEError
from fedmoe_server.report import run_folder
from fedmoe_server.report.run_folder import bytes_needed, check_run_dir, describe_run, new_run_dir, removed_if_empty

Usage = namedtuple("Usage", "total used free")
MEGABYTE = 10**6


def test_without_space_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(0, 0, 5 * MEGABYTE)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folder = tmp_path / "runs" / "one"
    with pytest.raises(FedMoEError, match=r"needs about 80 MB .* has 5 MB free: free some space or choose another"):
        check_run_dir(folder, 80 * MEGABYTE, resuming=False)
    assert asked == [tmp_path] and list(tmp_path.iterdir()) == []
    check_run_dir(folder, 4 * MEGABYTE, resuming=False)
    assert folder.is_dir() and list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_folder, "TemporaryFile", refuse)
    with pytest.raises(FedMoEError, match=r"cannot be written \(Permission denied\)"):
        check_run_dir(tmp_path / "a" / "b", 1, resuming=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(FedMoEError, match=r"runs is a file, not a folder"):
        check_run_dir(tmp_path / "runs" / "one", 1, resuming=False)


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(FedMoEError, match="already holds a run: resume it, or choose another folder"):
        check_run_dir(tmp_path, 1, resuming=False)
    check_run_dir(tmp_path, 1, resuming=True)


def test_the_estimate_counts_checkpoints_and_private_state() -> None:
    base = bytes_needed(0, 0, 0, 10)
    assert bytes_needed(MEGABYTE, 0, 1000, 10) - base == 3 * 4 * MEGABYTE
    assert bytes_needed(0, 1000, 500, 10) - base == 3 * 500_000


def test_a_new_folder_is_named_by_time_and_run(fakes: Any, tmp_path: Path) -> None:
    settings = fakes.make_settings().model_copy(update={"save_dir": tmp_path})
    now = datetime(2025, 1, 31, 12, 5, 9)
    assert new_run_dir(settings, now) == tmp_path / "20250131-120509-test"
    assert new_run_dir(settings, now) == tmp_path / "20250131-120509-test-2"


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(fakes: Any, tmp_path: Path) -> None:
    settings, now = fakes.make_settings().model_copy(update={"save_dir": tmp_path}), datetime(2025, 1, 31)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: new_run_dir(settings, now), range(32)))
    assert len(set(found)) == 32


def test_a_folder_without_a_run_is_removed(tmp_path: Path) -> None:
    for name, content in (("empty", []), ("used", ["settings.yaml"])):
        (tmp_path / name / "run").mkdir(parents=True)
        with pytest.raises(FedMoEError), removed_if_empty(tmp_path / name / "run"):
            for file in content:
                (tmp_path / name / "run" / file).touch()
            raise FedMoEError("refused")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_a_run_goes_on_with_the_data_and_clients_that_it_began_with(tmp_path: Path) -> None:
    describe_run(tmp_path, True, {"histories": "a", "catalogue": "b"}, going_on=False)
    describe_run(tmp_path, True, {"histories": "a", "catalogue": "b"}, going_on=True)
    with pytest.raises(FedMoEError, match="began with other data: histories changed since"):
        describe_run(tmp_path, True, {"histories": "x", "catalogue": "b"}, going_on=True)
    with pytest.raises(FedMoEError, match="a run of simulated clients"):
        describe_run(tmp_path, False, {"histories": "a", "catalogue": "b"}, going_on=True)
    describe_run(tmp_path, True, {"histories": "x", "catalogue": "b"}, going_on=False)
