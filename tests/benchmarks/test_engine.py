"""The engine benchmark: ratios by hand, plans, what is kept, and a tiny run in real processes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import engine, engine_central
from benchmarks.engine_cases import DEFAULT_ENGINES, ENGINES, TINY, Case, Options, Plan, cases, plan_of, smoke_cases
from benchmarks.engine_figures import beside, figure, pairs, ratios, seconds_of_client, speed_up
from benchmarks.engine_memory import Look, MemoryWatch, peaks, proportional_bytes
from benchmarks.engine_page import write_page
from benchmarks.engine_report import Report, Round, phase_of_rounds
from benchmarks.engine_runs import EngineFailed, Phase, Result, Results, run
from benchmarks.engine_windows import client_batches, joined, parts
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings, settings_from
from fedmoe_client.learning.batches import WindowBatch
from fedmoe_client.learning.objective import objective as real_objective
from fedmoe_client.learning.training import train_locally
from model.build import build_model

OPTIONS = Options(DEFAULT_ENGINES, (943, 6040), (604, 100), 3)


def result(engine_name: str, seconds: list[float], first: float = 1.0, repeat: int = 0, case: str = "ml-1m") -> Result:
    phase = Phase(10, seconds, 2 * 10**8, 10**9, 3e6, 1e6)
    plan = {"settings": load_settings(list(TINY))[0].model_dump(mode="json")}
    return Result(case, engine_name, repeat, plan, 0.5, first, [phase], {})


def data(case: str) -> Result:
    made = result("data", [], case=case)
    return Result(case, "data", 0, made.plan, 0.1, 2.0, [Phase(943, [], 0, 0, 0, 0)], {"items": 7, "interactions": 9})


# Figures


def test_ratios_by_hand(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for repeat, (flower, ray) in enumerate([(40.0, 4.0), (60.0, 10.0), (80.0, 10.0)]):
        results.add(result("flower", [flower], 70.0, repeat))
        results.add(result("ray", [ray, 100.0], 7.0, repeat))  # only the round that flower has done counts
        results.add(result("central", [1.0, 25.0], repeat=repeat))
    found = {ratio.what: ratio.measured for ratio in ratios(results, "ml-1m")}
    assert found["clients/s of ray / flower"] == figure([10.0, 6.0, 8.0])
    assert found["clients/s of ray / flower"].text(1) == "8.0 (6.0-10.0)"
    assert found["seconds to the end of the first round, flower / ray"].text() == "10"
    assert found["efficiency of ray: central / round"].most == pytest.approx(26 / 104)
    assert len(found) == 3
    assert pairs(results, "ml-1m", "ray", "pfl") == []


def test_seconds_of_a_client_by_hand() -> None:
    run = result("ray", [1.0, 3.0])
    assert seconds_of_client(run.phases[0]) == 4 / 20
    assert speed_up(run, result("pfl", [2.0, 6.0])) == 2.0


def test_cost_beside_another_case_is_a_ratio_within_a_repeat(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for repeat, (few, many) in enumerate([(2.0, 4.0), (4.0, 4.0), (1.0, 4.0)]):
        results.add(result("ray", [few], repeat=repeat, case="synthetic-943"))
        results.add(result("ray", [many], repeat=repeat, case="synthetic-6040"))
    found = beside(results, "ray", ("synthetic-6040", 0), ("synthetic-943", 0))
    assert found == figure([2.0, 1.0, 4.0])
    assert beside(results, "vectorized", ("synthetic-6040", 0), ("synthetic-943", 0)) is None


# Cases and plans


def test_cases_hold_both_jobs_the_sweep_and_the_large_catalogue() -> None:
    found = {case.name: case for case in cases(OPTIONS)}
    assert list(found) == ["ml-1m", "ml-100k", "synthetic-943", "synthetic-6040", "catalogue-100000"]
    assert found["ml-1m"].phases == ((604, 3),)
    assert found["synthetic-943"].phases == ((604, 3),)
    assert found["synthetic-6040"].phases == ((604, 3), (100, 3))
    assert found["synthetic-6040"].engines == ("ray", "vectorized")


@pytest.mark.parametrize("name", ["flower", "ray", "central", "pfl"])
def test_plans_are_valid_settings_without_evaluation(name: str) -> None:
    for case in cases(OPTIONS):
        plan = plan_of(case, name, 6040)
        federation = settings_from(plan.settings).federation
        assert (federation.evaluate_every, federation.warmup_rounds) == (0, 0)
        assert federation.client_fraction == pytest.approx(plan.phases[0][0] / 6040)
        rounds = len(list(phase_of_rounds(plan.phases)))
        assert len(plan.cohorts) == (rounds if name in ("central", "pfl") else 0)
        assert rounds == 1 + sum(warm for _, warm in plan.phases)
        assert name != "flower" or all(warm == 1 for _, warm in plan.phases)


def test_an_engine_that_the_settings_do_not_know_is_refused_by_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "warp", {"simulation.engine": "warp"})  # type: ignore[arg-type]
    with pytest.raises(FedMoEError, match="engine"):
        plan_of(smoke_cases(["warp"])[0], "warp", 40)


def test_a_misspelt_engine_case_or_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path)]
    assert engine.main(["--engines", "rey", *folder]) == 2
    assert "did you mean 'ray'" in capsys.readouterr().err
    assert engine.main(["--cases", "ml-10m", *folder]) == 2
    assert "did you mean 'ml-1m'" in capsys.readouterr().err
    assert engine.main(["--data-dir", str(tmp_path / "nowhere"), *folder]) == 2
    assert "ml-1m is no folder" in capsys.readouterr().err


# The same windows


def test_the_windows_are_those_that_the_client_trains_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, _ = load_settings([*TINY, "data.synthetic.users=6", "batch_size=2"])
    dataset = load_dataset(settings.data, settings.seed, tmp_path)
    trained: list[WindowBatch] = []

    def watched(model: object, batch: WindowBatch, training: object) -> object:
        trained.append(batch)
        return real_objective(model, batch, training)  # type: ignore[arg-type]

    monkeypatch.setattr("fedmoe_client.learning.training.objective", watched)
    model = build_model(settings.model, dataset, settings.seed)
    items = dataset.interactions.history(3)[:-2]
    train_locally(model, items, settings, 3, 5)
    batches = list(client_batches(dataset, settings, 5, 3))
    assert len(batches) == len(trained) > 0
    for ours, theirs in zip(batches, trained, strict=True):
        assert torch.equal(ours.context, theirs.context)
        assert torch.equal(ours.targets, theirs.targets)
        assert ours.negatives is not None and theirs.negatives is not None
        assert torch.equal(ours.negatives, theirs.negatives)
    together = joined(batches)
    assert [len(part.targets) for part in parts(together, 1)] == [1] * len(together.targets)
    assert torch.equal(torch.cat([part.context for part in parts(together, 2)]), together.context)


# Memory


def test_peaks_are_those_between_two_times() -> None:
    looks = [Look(1.0, 9, 90), Look(2.0, 3, 30), Look(3.0, 4, 20), Look(4.0, 8, 80)]
    assert peaks(looks, 2.0, 3.5) == (4, 30)
    assert peaks(looks, 5.0, 6.0) == (0, 0)


def test_memory_of_this_process_is_seen_and_of_none_is_nothing() -> None:
    watch = MemoryWatch(psutil.Process(os.getpid()))
    watch.look()
    assert 10**6 < watch.looks[0].driver <= watch.looks[0].tree
    assert proportional_bytes(2**22 + 1) == 0


# Results, and a tiny run


def test_reports_and_results_survive_being_written(tmp_path: Path) -> None:
    report = Report(1.0, [Round(0, 8, 2.0, 5.0, 6, 7)], {"batch size": 64})
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report
    assert report.rounds[0].seconds == 3.0
    Results(tmp_path).add(result("ray", [1.0]))
    assert Results(tmp_path).all == [result("ray", [1.0])]
    (tmp_path / "results.jsonl").write_text("no\n")
    with pytest.raises(FedMoEError, match="choose another --folder"):
        Results(tmp_path)


def test_what_is_there_is_not_run_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    case = Case("ml-1m", (*TINY, "data.synthetic.users=40"), ((8, 2),), ("ray",))
    plan = plan_of(case, "ray", 40)
    results = Results(tmp_path)
    assert not results.has(plan, 0)
    kept = result("ray", [1.0])
    results.add(Result(kept.case, kept.engine, 0, plan.as_json(), 0.0, 1.0, kept.phases, {}))
    assert results.has(plan, 0)
    assert not results.has(plan, 1)
    with pytest.raises(FedMoEError, match="other settings"):
        results.has(plan_of(case, "ray", 20), 0)


def test_the_page_has_tables_plots_and_what_was_left_out(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for case in ("ml-1m", "synthetic-943", "synthetic-6040", "catalogue-100000"):
        results.add(data(case))
        results.add(result("ray", [2.0], case=case))
        results.add(result("vectorized", [1.0], case=case))
    page = write_page(
        results, {"pfl": "not at hand"}, "python -m benchmarks.engine", tmp_path, Path("images")
    ).read_text()
    assert "| ray | 5 | 200.00 | 1.0 | 0.20 | 1.00 | 3.00 | 1.00 |" in page
    assert "| 6,040 | vectorized | 100.00 | 1.00 | 1.0 | 0.20 | 1.00 |" in page
    assert "* pfl: not at hand" in page
    for picture in ("cost-users.png", "cost-cohort.png"):
        assert f"images/{picture}" in page
        assert (tmp_path / "images" / picture).stat().st_size > 1000


def test_central_training_reports_each_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "cache"))
    case = smoke_cases(["central"])[0]
    (tmp_path / "plan.json").write_text(json.dumps(plan_of(case, "central", 40).as_json()))
    engine_central.main([str(tmp_path / "plan.json"), str(tmp_path / "report.json")])
    report = Report.read(tmp_path / "report.json")
    assert [(done.phase, done.clients) for done in report.rounds] == [(0, 8)] * 3
    assert all(done.seconds > 0 for done in report.rounds)
    assert report.notes["batch size"] in engine_central.BATCH_SIZES


def test_a_process_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    plan = plan_of(smoke_cases(["ray"])[0], "ray", 40)
    broken = replace(plan, engine="data", settings={"seed": "none"})
    with pytest.raises(FedMoEError, match=r"ml-1m, data: exit 1: .*seed"):
        run(broken, 0, tmp_path)


def test_smoke_runs_an_engine_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.time()
    words = ["--smoke", "--cases", "synthetic-80", "--engines", "ray", "--folder", str(tmp_path)]
    assert engine.main(words) == 0
    shown = capsys.readouterr().out
    assert "synthetic-80  ray  1/1:" in shown
    made, ray = Results(tmp_path).all
    assert (made.engine, made.phases[0].clients) == ("data", 80)
    assert [(phase.clients, len(phase.seconds)) for phase in ray.phases] == [(8, 1), (16, 1)]
    assert 0 < ray.first < time.time() - begun
    assert ray.phases[0].up > 0
    assert ray.phases[0].tree > ray.phases[0].driver > 10**7


def test_an_engine_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretended(plan: Plan, repeat: int, cache: Path, pfl_python: Path | None = None) -> Result:
        if plan.engine == "data":
            return data(plan.case)
        if plan.engine == "ray":
            raise EngineFailed("ray: exit 1: boom")
        return replace(result(plan.engine, [1.0], repeat=repeat, case=plan.case), plan=plan.as_json())

    monkeypatch.setattr(engine, "run", pretended)
    words = ["--cases", "ml-1m", "--engines", "ray", "central", "--repeats", "2", "--folder", str(tmp_path)]
    assert engine.main(words) == 1
    shown = capsys.readouterr().out
    assert shown.count("ml-1m  ray  failed: ray: exit 1: boom") == 1
    assert "ml-1m  central  2/2: 10 clients/s" in shown
    assert "boom" in (tmp_path / "performance.md").read_text()


def test_a_repeat_goes_through_all_cases_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []

    def pretended(plan: Plan, repeat: int, cache: Path, pfl_python: Path | None = None) -> Result:
        if plan.engine == "data":
            return data(plan.case)
        ran.append((plan.case, repeat))
        return replace(result(plan.engine, [1.0], repeat=repeat, case=plan.case), plan=plan.as_json())

    monkeypatch.setattr(engine, "run", pretended)
    monkeypatch.setattr(engine, "write_page", lambda *_: tmp_path)
    few = ["--cases", "synthetic-943", "synthetic-6040", "--engines", "ray", "--repeats", "2"]
    assert engine.main([*few, "--folder", str(tmp_path)]) == 0
    assert ran == [("synthetic-943", 0), ("synthetic-6040", 0), ("synthetic-943", 1), ("synthetic-6040", 1)]


def test_engines_that_cannot_run_are_left_out_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--smoke", "--cases", "ml-1m", "--engines", "pfl", "--folder", str(tmp_path)]
    assert engine.main(words) == 0
    assert "pfl is left out: --pfl-python does not name" in capsys.readouterr().out
