"""The benchmark of the strategies: every one that ships has a row, and the table goes between its marks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality import strategies as benchmark
from benchmarks.quality.__main__ import main
from benchmarks.runs import changed
from benchmarks.tables import BEGIN, END, page_text, replaced
from fedmoe.loading import load_settings
from fedmoe_server.rounds.record import Result
from strategies import STRATEGIES, build_strategy

RESULT = Result(
    validation={"global": {"hr@10": 0.1, "ndcg@10": 0.05}},
    test={"global": {"hr@10": 0.25, "ndcg@10": 0.125}},
    bytes_down=2_000_000,
    bytes_up=1_000_000,
    seconds=12.4,
)


def test_every_strategy_has_a_row_that_can_be_built() -> None:
    assert set(STRATEGIES) <= {changes["federation.strategy"] for changes in benchmark.ROWS.values()}
    base, _ = load_settings([])
    for changes in benchmark.ROWS.values():
        federation = changed(base, changes).federation
        build_strategy(federation.strategy, federation.strategy_parameters)
    assert changed(base, benchmark.ROWS["fedavg"]).federation.server_schedule == "constant"


def test_the_table_is_sorted_and_replaces_the_one_before() -> None:
    base, _ = load_settings(["num_rounds=20"])
    rows = [
        benchmark.row("b", RESULT),
        benchmark.row("a", replace(RESULT, validation={"global": {"hr@10": 0.2, "ndcg@10": 0.1}})),
    ]
    made = benchmark.table_of(rows, base)
    assert made.splitlines()[4:] == [
        "| a | .200 | .100 | .250 | .125 | 3 | 12 |",
        "| b | .100 | .050 | .250 | .125 | 3 | 12 |",
    ]
    page = f"text\n{BEGIN}\nold\n{END}\nmore\n"
    assert replaced(page, made) == f"text\n{BEGIN}\n{made}\n{END}\nmore\n"
    assert "| strategy |" in page_text(benchmark.PAGE)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "fedadm"], "no row 'fedadm' - did you mean 'fedadam'"),
        (["num_rownds=3"], "num_rownds"),
        (["--page", "{folder}/none.md"], "cannot be read"),
        (["--page", "{folder}/plain.md"], "has no lines"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.md").write_text("no marks")
    assert main(["strategies", *(word.format(folder=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and complaint in error
    assert len(error.splitlines()) == 1
