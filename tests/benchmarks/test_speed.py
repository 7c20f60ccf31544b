"""The speed benchmark: ratios by hand, plans, what is kept, and a tiny run in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from plain_clients import train_locally

from benchmarks.runs import Kept
from benchmarks.speed import __main__ as speed
from benchmarks.speed import work
from benchmarks.speed.cases import DEFAULT_ENGINES, ENGINES, TINY, Case, Plan, cases, plan_of, smoke_cases
from benchmarks.speed.page import RATIOS, figure, page, side_by_side, speed_up
from benchmarks.speed.process import EngineFailed, Result, memory_of, peak_memory, run
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings, settings_from
from model.build import build_model
from model.losses import WindowBatch
from model.losses import objective as real_objective


def result(engine: str, seconds: list[float], first: float = 1.0, repeat: int = 0, case: str = "ml-1m") -> Result:
    return Result(case, engine, repeat, 10, first, seconds, 2 * 10**8, 10**9, 3e6, 1e6)


MADE = {"users": 943, "items": 7, "interactions": 9, "seconds": 2.0}


# Figures


def test_ratios_by_hand() -> None:
    runs: dict[tuple[str, str], list[Result]] = {("ml-1m", name): [] for name in ("flower", "ray", "central")}
    for repeat, (flower, ray) in enumerate([(40.0, 4.0), (60.0, 10.0), (80.0, 10.0)]):
        runs["ml-1m", "flower"].append(result("flower", [flower], 70.0, repeat))
        runs["ml-1m", "ray"].append(
            result("ray", [ray, 100.0], 7.0, repeat)
        )  # only the round that flower has done counts
        runs["ml-1m", "central"].append(result("central", [1.0, 25.0], repeat=repeat))
    ratios = {
        what: measured
        for what, one, other, _, ratio in RATIOS
        if (measured := side_by_side(runs, ("ml-1m", one), ("ml-1m", other), ratio))
    }
    assert ratios["clients/s of ray / flower"] == [10.0, 6.0, 8.0]
    assert figure(ratios["clients/s of ray / flower"], 1) == "8.0 (6.0-10.0)"
    assert figure(ratios["seconds to the end of the first round, flower / ray"]) == "10"
    assert figure([], 1) == ""
    assert max(ratios["efficiency of ray: central / round"]) == pytest.approx(26 / 104)
    assert len(ratios) == 3


def test_seconds_of_a_client_by_hand() -> None:
    assert result("ray", [1.0, 3.0]).seconds_of_client == 4 / 20
    assert speed_up(result("ray", [1.0, 3.0]), result("pfl", [2.0, 6.0])) == 2.0


def test_cost_beside_another_case_is_a_ratio_within_a_repeat(tmp_path: Path) -> None:
    results = []
    for repeat, (few, many) in enumerate([(2.0, 4.0), (4.0, 4.0), (1.0, 4.0)]):
        results.append(result("ray", [few], repeat=repeat, case="synthetic-943-604"))
        results.append(result("ray", [many], repeat=repeat, case="synthetic-6040-604"))
    made = dict.fromkeys(["synthetic-943-604", "synthetic-6040-604"], MADE)
    text = page(made, results, {}, "", tmp_path)
    assert "| 6,040 | ray | 400.00 | 2.00 (1.00-4.00) | " in text


# Cases and plans


def test_cases_hold_both_jobs_and_the_sweeps() -> None:
    found = {case.name: case for case in cases(DEFAULT_ENGINES)}
    assert list(found) == [
        "ml-1m",
        "ml-100k",
        "synthetic-943-604",
        "synthetic-6040-604",
        "synthetic-100000-604",
        "synthetic-1000000-604",
        "synthetic-1000000-100",
        "synthetic-1000000-2000",
        "catalogue-10000",
        "catalogue-100000",
        "catalogue-1000000",
    ]
    assert (found["ml-1m"].clients, found["ml-100k"].clients) == (604, 94)
    assert found["synthetic-1000000-2000"].clients == 2000
    assert found["synthetic-943-604"].engines == ("ray", "vectorized")
    assert found["catalogue-1000000"].engines == ("ray", "vectorized")
    assert found["catalogue-1000000"].clients == 667


@pytest.mark.parametrize("name", ["flower", "ray", "central", "pfl"])
def test_plans_are_valid_settings_without_evaluation(name: str) -> None:
    for case in cases(DEFAULT_ENGINES):
        plan = plan_of(case, name, 6040)
        federation = settings_from(plan.settings).federation
        assert (federation.evaluate_every, federation.warmup_rounds) == (0, 0)
        assert federation.client_fraction == pytest.approx(plan.clients / 6040)
        rounds = 13 if case.name.startswith("catalogue") else 4
        assert plan.rounds == (2 if name == "flower" else rounds)
        wanted = [plan.clients] * rounds if name in ("central", "pfl") else []
        assert [len(cohort) for cohort in plan.cohorts] == wanted


def test_an_engine_that_the_settings_do_not_know_is_refused_by_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "warp", {"simulation.engine": "warp"})  # type: ignore[arg-type]
    with pytest.raises(FedMoEError, match="engine"):
        plan_of(smoke_cases(["warp"])[0], "warp", 40)


def test_a_misspelt_engine_case_or_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path)]
    assert speed.main(["--engines", "rey", *folder]) == 2
    assert "did you mean 'ray'" in capsys.readouterr().err
    assert speed.main(["--cases", "ml-10m", *folder]) == 2
    assert "did you mean 'ml-1m'" in capsys.readouterr().err
    assert speed.main(["--data-dir", str(tmp_path / "nowhere"), *folder]) == 2
    assert "ml-1m is no folder" in capsys.readouterr().err
    assert speed.main(["--page", str(tmp_path / "nowhere.md"), *folder]) == 2
    assert "cannot be read" in capsys.readouterr().err


# The same windows


def test_the_windows_are_those_that_the_client_trains_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, _ = load_settings([*TINY.split(), "data.synthetic.users=6", "batch_size=2"])
    dataset = load_dataset(settings, tmp_path)
    trained: list[WindowBatch] = []

    def watched(model: object, batch: WindowBatch, training: object) -> object:
        trained.append(batch)
        return real_objective(model, batch, training)  # type: ignore[arg-type]

    monkeypatch.setattr("fedmoe_client.learning.training.objective", watched)
    model = build_model(settings, dataset)
    items = dataset.interactions.history(3)[:-2]
    train_locally(model, items, settings, 3, 5)
    ours, theirs = work.client_windows(dataset, settings, 5, 3), work.joined(trained)
    assert len(trained) > 0
    assert torch.equal(ours.context, theirs.context)
    assert torch.equal(ours.targets, theirs.targets)
    assert ours.negatives is not None and theirs.negatives is not None
    assert torch.equal(ours.negatives, theirs.negatives)
    twice = settings.model_copy(update={"training": settings.training.model_copy(update={"local_epochs": 2})})
    assert torch.equal(work.client_windows(dataset, twice, 5, 3).context, ours.context)
    assert [len(part.targets) for part in work.parts(ours, 1)] == [1] * len(ours.targets)
    assert torch.equal(torch.cat([part.context for part in work.parts(ours, 2)]), ours.context)


# Memory


def test_the_most_memory_is_seen_and_a_process_ends_at_its_deadline() -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    process = subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"])
    driver, tree = peak_memory(process, time.time() + 1.5)
    assert process.returncode != 0
    assert 10**6 < driver < tree
    ended = subprocess.Popen(["true"])
    gone = psutil.Process(ended.pid)
    ended.wait()
    assert memory_of(gone) == 0 < memory_of(psutil.Process())


# Results, and a tiny run


def test_reports_and_results_survive_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", "", str(tmp_path / "report.json")])
    report = work.Report()
    report.add(2.0, 5.0, 6, 7)
    report.write()
    assert json.loads((tmp_path / "report.json").read_text()) == {"ready": report.ready, "rounds": [[2.0, 5.0, 6, 7]]}
    Kept(tmp_path).get("a", {}, lambda: asdict(result("ray", [1.0])))
    assert [Result(**found) for found in Kept(tmp_path).results().values()] == [result("ray", [1.0])]
    (tmp_path / "results.jsonl").write_text("no\n")
    with pytest.raises(FedMoEError, match="choose another --folder"):
        Kept(tmp_path)


def test_what_is_there_is_not_run_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    case = Case("ml-1m", f"{TINY} data.synthetic.users=40", 8, ("ray",))
    plan = plan_of(case, "ray", 40)
    first = Kept(tmp_path).get("ml-1m  ray  0", asdict(plan), lambda: {"first": 1})
    kept = Kept(tmp_path)
    assert kept.get("ml-1m  ray  0", asdict(plan), lambda: pytest.fail("run again")) == first
    assert kept.get("ml-1m  ray  1", asdict(plan), lambda: {"first": 2}) == {"first": 2}
    with pytest.raises(FedMoEError, match="other settings"):
        kept.get("ml-1m  ray  0", asdict(plan_of(case, "ray", 20)), dict)


def test_the_page_has_tables_plots_and_what_was_left_out(tmp_path: Path) -> None:
    made = dict.fromkeys(["ml-1m", "synthetic-943-604", "synthetic-6040-604", "catalogue-10000"], MADE)
    results = [result(engine, [s], case=case) for case in made for engine, s in (("ray", 2.0), ("vectorized", 1.0))]
    text = page(made, results, {"pfl": "not at hand"}, "python -m benchmarks.speed", tmp_path)
    assert "| ray | 5 | 200.00 | 1.0 | 0.20 | 1.00 | 3.00 | 1.00 |" in text
    assert "| 6,040 | vectorized | 100.00 | 1.00 | 1.0 | 0.20 | 1.00 |" in text
    assert "* pfl is left out: not at hand" in text
    assert "## Against" not in page({"synthetic-80-8": MADE}, [], {}, "", tmp_path)
    for picture in ("cost-users.png", "cost-cohort.png", "cost-items.png"):
        assert f"images/{picture}" in text
        assert (tmp_path / "images" / picture).stat().st_size > 1000


def test_central_training_reports_each_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "plan.json"), str(tmp_path / "report.json")])
    plan = plan_of(smoke_cases(["central"])[0], "central", 40)
    (tmp_path / "plan.json").write_text(json.dumps(asdict(plan)))
    work.main()
    rounds = json.loads((tmp_path / "report.json").read_text())["rounds"]
    assert len(rounds) == plan.rounds
    assert all(ended > begun for begun, ended, *_ in rounds)


def test_a_process_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    plan = plan_of(smoke_cases(["central"])[0], "central", 40)
    with pytest.raises(FedMoEError, match=r"ml-1m, central: exit 1: .*seed"):
        run(replace(plan, settings={"seed": "none"}), tmp_path)


def test_smoke_runs_an_engine_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.time()
    words = ["--smoke", "--cases", "synthetic-80-8", "--engines", "ray", "--folder", str(tmp_path)]
    assert speed.main(words) == 0
    shown = capsys.readouterr().out
    assert "synthetic-80-8  ray  1/1:" in shown
    assert Kept(tmp_path / "data").results()["synthetic-80-8"]["users"] == 80
    (ray,) = (Result(**found) for found in Kept(tmp_path).results().values())
    assert (ray.clients, len(ray.seconds)) == (8, 3)
    assert 0 < ray.first < time.time() - begun
    assert ray.up > 0
    assert ray.tree > ray.driver > 10**7


def pretended(
    ran: list[tuple[str, int]], plan: Plan, cache: Path, pfl_python: Path | None = None, repeat: int = 0
) -> Result:
    if plan.engine == "flower":
        raise EngineFailed("flower: exit 1: boom")
    ran.append((plan.case, repeat))
    return result(plan.engine, [1.0], repeat=repeat, case=plan.case)


def test_an_engine_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "run", partial(pretended, []))
    text = tmp_path / "page.md"
    text.write_text("before\n<!-- benchmark: begin -->\n<!-- benchmark: end -->\n")
    words = ["--cases", "ml-1m", "--engines", "flower", "central", "--repeats", "2", "--folder", str(tmp_path)]
    monkeypatch.setattr(speed, "_made", lambda *_: dict[str, Any](MADE))
    assert speed.main([*words, "--page", str(text)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("ml-1m  flower  failed: flower: exit 1: boom") == 1
    assert "ml-1m  central  2/2: 10 clients/s" in shown
    assert text.read_text().startswith("before\n") and "boom" in text.read_text()


def test_a_repeat_goes_through_all_cases_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []
    monkeypatch.setattr(speed, "run", partial(pretended, ran))
    monkeypatch.setattr(speed, "_made", lambda *_: dict[str, Any](MADE))
    few = ["--cases", "synthetic-943-604", "synthetic-6040-604", "--engines", "ray", "--repeats", "2"]
    assert speed.main([*few, "--folder", str(tmp_path)]) == 0
    one, other = "synthetic-943-604", "synthetic-6040-604"
    assert ran == [(one, 0), (other, 0), (one, 1), (other, 1)]


def test_engines_that_cannot_run_are_left_out_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--smoke", "--cases", "ml-1m", "--engines", "pfl", "--folder", str(tmp_path)]
    assert speed.main(words) == 0
    assert "pfl is left out: --pfl-python does not name" in capsys.readouterr().out
