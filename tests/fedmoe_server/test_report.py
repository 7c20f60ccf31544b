"""The report, from the files of a run folder alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe.errors import FedMoEError
from fedmoe_server.report.client_ranks import ClientRank, write_client_ranks
from fedmoe_server.report.plots import draw_gate, draw_loss, draw_ranking
from fedmoe_server.report.report import write_report
from fedmoe_server.report.run_folder import read_result
from fedmoe_server.rounds.record import LoopState, RoundRecord

PNG = b"\x89PNG"
BASELINES = {"popularity": {"test": {"hr@10": 0.0817, "ndcg@10": 0.0437}}, "central": {"test": {"hr@10": 0.21}}}


def finished(fakes: Any, folder: Path) -> Path:
    grid = fakes.FakeGrid()
    grid.fail = lambda client, stage, round_: "ValueError: a|b" if (client, stage) == (3, "train") else None
    loop = fakes.make_loop(grid, folder, fakes.make_settings(client_fraction=1.0))
    loop.tracker.finish(loop.run(LoopState(fakes.model_arrays())), 75.0)
    return folder


def test_report_without_baselines(fakes: Any, tmp_path: Path) -> None:
    text = write_report(finished(fakes, tmp_path)).read_text()
    assert text.startswith("# test: federated run\n")
    assert "Completed: 6 rounds in 1 min 15 s." in text
    assert "| Test | HR@10 | NDCG@10 |" in text and "| Validation | HR@10 | NDCG@10 |" in text
    assert "with the clients' private parameters" in text and "server's model alone" in text
    assert "popularity" not in text and "central" not in text
    assert "6 failures of 1 client." in text and "| 3 | 6 | 6 | train: ValueError: a\\|b |" in text
    assert "```yaml\nname: test\n" in text
    for name in ("loss.png", "ranking.png", "gate.png"):
        assert f"]({name})" in text and (tmp_path / name).read_bytes().startswith(PNG)


def test_report_names_those_that_failed_at_the_end(fakes: Any, tmp_path: Path) -> None:
    grid = fakes.FakeGrid()
    failing = {(3, "test"), (4, "test"), (4, "validation")}
    grid.fail = lambda client, stage, round_: "OSError" if (client, grid.sent[-1][3]) in failing else None
    settings = fakes.make_settings(client_fraction=1.0, evaluate_every=0, evaluate_clients=0)
    loop = fakes.make_loop(grid, tmp_path, settings)
    result = loop.run(LoopState(fakes.model_arrays()))
    loop.tracker.finish(result, 1.0)
    assert read_result(tmp_path).final_failures == result.final_failures
    asked = result.final_clients
    text = write_report(tmp_path).read_text()
    assert f"those clients that answered, {asked - 2} of {asked} (test) and {asked - 1} of {asked} (validation)" in text
    assert "3 failures of 2 clients." in text
    assert "| 3 | 1 | final evaluation | test: OSError |" in text
    assert "means over all users" not in text


def test_report_is_written_again_with_baselines(fakes: Any, tmp_path: Path) -> None:
    write_report(finished(fakes, tmp_path))
    before = (tmp_path / "ranking.png").read_bytes()
    (tmp_path / "baselines.json").write_text(json.dumps(BASELINES))
    assert write_report(tmp_path) == tmp_path / "report.md"
    text = (tmp_path / "report.md").read_text()
    assert "| popularity | 0.0817 | 0.0437 |" in text and "| central | 0.2100 | - |" in text
    assert (tmp_path / "ranking.png").read_bytes() != before


def test_report_says_whom_private_parameters_help(fakes: Any, tmp_path: Path) -> None:
    finished(fakes, tmp_path)
    ranks = [ClientRank(1, "test", 1.0, 2.0), ClientRank(2, "test", 9.0, 8.0), ClientRank(3, "test", 3.0, 3.0)]
    write_client_ranks(tmp_path, ranks)
    # (2 * 8 * 3)^(1/3) is 3.6, (1 * 9 * 3)^(1/3) is 3.
    assert "| test | 33.3% | 33.3% | 33.3% | 3.6 | 3.0 |" in write_report(tmp_path).read_text()


def test_report_of_a_failed_and_of_an_unfinished_run(fakes: Any, tmp_path: Path) -> None:
    finished(fakes, tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed", "error": "round 7: nobody replied"}))
    text = write_report(tmp_path).read_text()
    assert "**Failed** after round 6 of 6: round 7: nobody replied" in text and "## Ranking" not in text
    (tmp_path / "result.json").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 7, "pha')  # cut off in the middle of a line
    assert "**Not finished**: 6 of 6 rounds done." in write_report(tmp_path).read_text()


def test_report_of_a_run_without_any_round(fakes: Any, tmp_path: Path) -> None:
    finished(fakes, tmp_path)
    write_report(tmp_path)
    (tmp_path / "result.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("")
    text = write_report(tmp_path).read_text()
    assert "0 of 6 rounds done" in text and "png" not in text
    assert not (tmp_path / "loss.png").exists()


def test_what_is_no_run_folder_is_refused(fakes: Any, tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"^[^\n]*metrics\.jsonl[^\n]*$"):
        write_report(tmp_path)
    finished(fakes, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], "no", lines[1]]))
    with pytest.raises(FedMoEError, match=r"metrics\.jsonl, line 2, is not JSON"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "settings.yaml").unlink()
    with pytest.raises(FedMoEError, match=r"settings\.yaml is missing"):
        write_report(tmp_path)


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    """A plain SASRec has no gate, and a run may have no evaluation."""
    records = [RoundRecord(1, train={"loss": None})]
    path = tmp_path / "x.png"
    assert not draw_loss(records, path) and not draw_gate(records, path)
    assert not draw_ranking(records, {}, 1, path) and not path.exists()
