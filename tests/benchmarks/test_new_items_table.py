"""The benchmark of new items: its table by hand, and a small run from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.__main__ import main
from benchmarks.quality.new_items import GIVEN, KINDS, MODEL, given_places, new_item_table
from fedmoe_client.learning.new_items import NEIGHBOURS

SMALL = (
    "name=tiny dataset=synthetic data.synthetic.users=40 data.synthetic.items=60 data.new_items=0.2 dim=8 blocks=1 "
    "attention_dim=8 max_seq_len=8 memory_size=8 memory_refresh=4 num_negatives=10 num_rounds=2 client_fraction=0.5 "
    "warmup_rounds=1 hosts=1 evaluate_every=0 engine=vectorized"
).split()


def test_the_table_by_hand() -> None:
    near = {"new": np.array([1.0, 20.0, 60.0, 70.0]), "among": np.array([1.0, 2.0, 3.0, 40.0])}
    own = {"new": np.array([1.0, 2.0, 3.0, 50.0]), "among": np.array([1.0, 2.0, 11.0, 12.0])}
    test = {"test": np.array([1.0, 11.0]), "others": np.array([1.0, 10.0])}
    lines = new_item_table({NEIGHBOURS: [near | test], MODEL: [own | test]}).splitlines()
    assert lines[2] == f"| {NEIGHBOURS} | 0.2500 |  |  | 0.5000 |  |  | 0.7500 | 0.5000 | -22.4% |"
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[:3] == [MODEL, "0.7500", "3.00"] and cells[4:6] == ["1.0000", "2.00"]
    assert cells[7:] == ["0.5000", "0.5000", "-22.4%"]  # 1 / log2(11) = .289 of the item in place 10 is gone
    assert cells[3] == "0.083"  # t = .5 / (.5774 / 2) = 1.732
    # The first of the new ones gets place 10, the second 41, the eleventh 50, the twelfth none.
    cells = [cell.strip() for cell in lines[4].strip("|").split("|")]
    assert cells[0].startswith(f"{MODEL}, place 10") and (cells[1], cells[4], cells[8]) == (
        "0.2500",
        "0.7500",
        "0.5000",
    )


def test_places_by_hand() -> None:
    ranks = {"among": np.array([1.0, 1.5, 3.0]), "others": np.array([1.0, 2.0, 2.5, 3.0])}
    found = given_places(ranks, (2, 4))
    assert found["new"].tolist() == [2.0, 4.0, np.inf]
    assert found["test"].tolist() == [1.0, 3.0, 5.0, 5.0]


def test_two_seeds_are_cases_of_one_table() -> None:
    one = {which: np.array([1.0, 100.0]) for which in KINDS}
    two = {which: np.array([1.0, 2.0, 3.0, 4.0]) for which in KINDS}
    assert "| 0.8333 |" in new_item_table({NEIGHBOURS: [one, two]}).splitlines()[2]


def test_a_small_run_and_what_is_there_is_not_measured_again(
    hosts_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["new_items", *SMALL, "--seeds", "1", "--folder", str(tmp_path)]
    words += ["--rows", "popularity", MODEL]
    assert main(words) == 0
    page = (tmp_path / "tiny" / "new_items.md").read_text()
    assert [line.split(" | ")[0][2:] for line in page.splitlines() if line.startswith("| ")][2:] == [
        "popularity",
        NEIGHBOURS,
        MODEL,
        f"{MODEL}, {GIVEN}",
    ]
    runs = sorted((tmp_path / "tiny" / "runs").iterdir())
    assert main(words) == 0
    assert (tmp_path / "tiny" / "new_items.md").read_text() == page
    assert sorted((tmp_path / "tiny" / "runs").iterdir()) == runs and len(runs) == 1
    assert main(["new_items", *SMALL, "--rows", "mixtures"]) == 2
    assert "no row 'mixtures'" in capsys.readouterr().err
