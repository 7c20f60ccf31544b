"""The quality benchmark: arithmetic by hand, and a small run from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_comparison import WORDS, Compared

from benchmarks.quality.__main__ import main
from benchmarks.quality.compare import VARIANTS, settings_of
from benchmarks.quality.figures import comparison_table, gain, hit_rate, main_table, paired_p, slice_table
from fedmoe.loading import load_settings

RANKS = np.array([1.0, 3.0, 11.0, 60.0])
TAIL = {"tail item": RANKS > 10}


def test_metrics_by_hand() -> None:
    assert hit_rate(RANKS, 10).tolist() == [1, 1, 0, 0]
    assert gain(RANKS).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_paired_test() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=1000)
    assert paired_p(first, first) == 1.0
    assert paired_p(first + 0.5 + 0.1 * rng.normal(size=1000), first) < 1e-6
    scipy_like = paired_p(first, rng.normal(size=1000))
    assert 0.01 < scipy_like <= 1.0


def test_tables_show_mean_spread_and_slices() -> None:
    rows = {"a": [RANKS, RANKS], "b": [RANKS + 100, RANKS + 100]}
    table = main_table(rows, {"a": [RANKS, RANKS]}, "a")
    assert "| a | 0.5000 ± 0.0000 | 0.3750 ± 0.0000 |  |  | 0.5000 ± 0.0000 | 0.3750 ± 0.0000 |" in table
    assert "-100.0%" in table
    sliced = slice_table(rows, {"tail item": np.array([False, True, False, True])})
    assert "| a | 0.2500 | 0.5000 |" in sliced


def test_comparisons_are_ratios_of_rows_that_were_run() -> None:
    rows = {"a": [RANKS], "b": [RANKS + 1.0]}
    found = comparison_table(rows, {"a": [RANKS], "b": [RANKS]}, [("a", "b"), ("a", "c")], TAIL)
    # NDCG@10 of b: 1 / log2(3) and 1 / log2(5), together 1.0616; HR@50 of the two rare ones: both one of two.
    assert found.splitlines()[2].startswith("| a | b | 1.413 | ")
    # (1 * 3 * 11 * 60) / (2 * 4 * 12 * 61) is .338, and its fourth root .763.
    assert found.splitlines()[2].split(" | ")[4] == "0.763"
    assert found.splitlines()[2].endswith(" | 1.000 | 1.000 |")
    assert len(found.splitlines()) == 3
    assert comparison_table(rows, {}, [("a", "c")], TAIL) == ""
    assert comparison_table(rows, {}, [("a", "b")], {"head item": RANKS > 10}) == ""


def test_every_variant_has_valid_settings(tmp_path: Path) -> None:
    base, _ = load_settings([])
    for variant in VARIANTS:
        assert variant.split()[0] in ("popularity", "central", "federated")
        assert settings_of(base, variant, 7, tmp_path).seed == 7


def test_a_small_run_is_kept_and_shown(compared: Compared) -> None:
    first, again = compared.shown
    assert (compared.folder / "quality.png").is_file()
    for row in ("| popularity |", "| federated mixture | central mixture |", "| federated mixture |", "tail item"):
        assert row in first
    assert "rounds in" in first
    assert "rounds in" not in again
    assert again[again.index("| test") :] == first[first.index("| test") :]


def test_results_of_other_settings_are_refused(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "dim=4", "--seeds", "1", "--folder", str(compared.folder.parent), "--variants", "central mixture"]
    assert main(["compare", *words]) == 2
    assert "choose another --folder" in capsys.readouterr().err


def test_synthetic_users_of_different_seeds_are_not_paired(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *WORDS, "--seeds", "1", "2", "--variants", "popularity"]) == 2
    assert "synthetic data are those of one seed" in capsys.readouterr().err


def test_noise_takes_the_place_of_the_features_that_are_there(tmp_path: Path) -> None:
    base, _ = load_settings(["visual_file=null"])
    found = settings_of(base, "federated mixture, noise", 1, tmp_path).modalities
    assert (found["text"].file, found["visual"].file) == ("noise", None)


def test_an_unknown_variant_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--variants", "centrl mixture"]) == 2
    assert "did you mean 'central mixture'" in capsys.readouterr().err


def test_without_a_command_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert (main([]), main(["--help"])) == (2, 0)
    shown = capsys.readouterr()
    assert "personal    whose" in shown.out and "personal    whose" in shown.err
