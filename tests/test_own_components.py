"""A backbone, a loss, a metric and a data set of one's own, each of one file in ``examples``, on two engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import sim
from data.registry import load_dataset
from examples.backbones.gru4rec import GRU4Rec
from examples.losses.bpr_max import BPRMax
from examples.metrics.mrr import MRR
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings
from fedmoe.metrics import own_metrics
from fedmoe.settings import ModelSettings
from model.build import build_model
from model.version import model_version

SMALL = (
    "dataset=synthetic data.synthetic.users=12 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=0.5 warmup_rounds=1 evaluate_every=0 "
    "num_rounds=2 hosts=1 dropout=0 aggregate_in_hosts=false"
).split()
GRU = ["backbone=examples.backbones.gru4rec:GRU4Rec", "backbone_parameters.layers=2"]
LOSS = ["loss=examples.losses.bpr_max:BPRMax", "loss_parameters.penalty=0.5"]
METRIC = ["evaluation.metrics={mrr: examples.metrics.mrr:MRR}", "evaluation.metric_parameters={mrr: {cutoff: 20}}"]


def run_on(engine: str, folder: Path, words: list[str]) -> tuple[dict[str, np.ndarray], Path]:
    """Return the final arrays of a run, and its folder."""
    given = [*SMALL, *words, f"engine={engine}", f"save_dir={folder / engine}"]
    assert sim.main(given) == 0
    (run_dir,) = (folder / engine).iterdir()
    return load_file(run_dir / "checkpoints" / "round-000002" / "arrays.safetensors"), run_dir


def test_a_backbone_that_does_not_stack_is_trained_one_by_one_and_the_run_says_so(
    hosts_here: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone, _ = run_on("ray", tmp_path, GRU)
    stacked, _ = run_on("vectorized", tmp_path, GRU)
    assert caplog.text.count("(GRU) does not stack") == 1
    start = build_model(*_settings_and_data(GRU)).state_dict()
    assert {name for name in alone if name.startswith("backbone.gru")} and "backbone.positions.weight" not in alone
    assert np.abs(alone["backbone.gru.weight_hh_l1"] - start["backbone.gru.weight_hh_l1"].numpy()).max() > 1e-5
    for name, array in alone.items():
        assert array.tobytes() == stacked[name].tobytes()


def test_a_loss_and_a_metric_of_ones_own_run_stacked_and_alone(hosts_here: None, tmp_path: Path) -> None:
    found, tests = {}, {}
    for engine in ("ray", "vectorized"):
        found[engine], run_dir = run_on(engine, tmp_path, [*LOSS, *METRIC])
        tests[engine] = json.loads((run_dir / "result.json").read_text())["test"]
    plain, _ = run_on("ray", tmp_path / "plain", [])
    for name, array in found["ray"].items():
        np.testing.assert_allclose(array, found["vectorized"][name], atol=3e-5)
    assert max(np.abs(array - plain[name]).max() for name, array in found["ray"].items()) > 1e-4
    numbers = tests["ray"]["personalised"]
    assert 0.0 < numbers["mrr"] < 1.0 and numbers["ndcg@20"] >= numbers["mrr"]
    assert tests["vectorized"]["personalised"]["mrr"] == pytest.approx(numbers["mrr"], abs=1e-6)


def test_a_data_set_of_ones_own_runs_and_is_read_anew_when_its_file_changes(hosts_here: None, tmp_path: Path) -> None:
    file = tmp_path / "combined_data_1.txt"
    rng = np.random.default_rng(5)
    films = {film: rng.permutation(40)[: rng.integers(12, 30)] for film in range(1, 31)}
    rows = {
        film: [f"{user},{1 + film % 5},20{user % 6 + 10}-0{film % 9 + 1}-11" for user in films[film]] for film in films
    }
    file.write_text("".join("\n".join([f"{film}:", *lines, ""]) for film, lines in rows.items()))
    words = ["dataset=examples.data.netflix:NetflixPrize", f"dataset_parameters.file={file}"]
    words += ["dataset_parameters.least_rating=2"]
    small = [word for word in SMALL if "synthetic" not in word]
    dataset = load_dataset(load_settings([*small, *words])[0], tmp_path / "cache")
    expected = sorted(film for film in films if 1 + film % 5 >= 2)
    assert sorted(int(item) for item in dataset.interactions.item_ids[1:]) == expected
    user = dataset.interactions.user_ids.tolist().index("7")
    met = [film for film in sorted(expected, key=lambda film: (film % 9, film)) if 7 in films[film]]
    assert [int(dataset.interactions.item_ids[item]) for item in dataset.interactions.history(user)] == met
    for engine in ("ray", "vectorized"):
        given = [*small, *words, f"engine={engine}", f"save_dir={tmp_path / engine}"]
        assert sim.main(given) == 0
    file.write_text(file.read_text() + "99:\n7,5,2019-01-01\n")
    again = load_dataset(load_settings([*small, *words])[0], tmp_path / "cache")
    assert again.interactions.num_items == dataset.interactions.num_items + 1
    file.write_text("1:\n7;5;2019-01-01\n")
    with pytest.raises(FedMoEError, match="line 2: expected 'user,rating,date'"):
        load_dataset(load_settings([*small, *words])[0], tmp_path / "cache")


def test_the_gru_reads_the_past_alone_and_never_padding() -> None:
    torch.manual_seed(1)
    backbone = GRU4Rec(ModelSettings(dim=8, heads=2, attention_dim=8, dropout=0.0)).eval()
    vectors = torch.randn(2, 5, 8)
    present = torch.tensor([[False, False, True, True, True], [True] * 5])
    states = backbone(vectors, present)
    alone, _ = backbone.gru(vectors[:1, 2:] * 8**0.5)  # the three items, without any padding
    torch.testing.assert_close(states[:1, 2:], alone)
    later = vectors.clone()
    later[:, -1] += 1.0
    torch.testing.assert_close(backbone(later, present)[:, :-1], states[:, :-1])


def test_bpr_max_is_the_papers_formula() -> None:
    positive, negative = torch.tensor([[0.3, 9.0]]), torch.tensor([[[0.1, -0.4, 1.0], [0.0, 0.0, 0.0]]])
    r, shares = np.array([0.1, -0.4, 1.0]), np.exp([0.1, -0.4, 1.0]) / np.exp([0.1, -0.4, 1.0]).sum()
    by_hand = -np.log((shares / (1 + np.exp(r - 0.3))).sum()) + 0.5 * (shares * r**2).sum()
    found = BPRMax(0.5)(positive, negative, torch.tensor([[True, False]]), 60)
    assert found.item() == pytest.approx(by_hand, rel=1e-5)


def test_reciprocal_ranks() -> None:
    assert [MRR().of(rank) for rank in (1.0, 2.5, 40.0)] == [1.0, 0.4, 0.025]
    assert [MRR(cutoff=20).of(rank) for rank in (20.0, 20.5)] == [0.05, 0.0]


def test_another_backbone_is_another_model() -> None:
    versions = {model_version(*_settings_and_data(words)) for words in ([], GRU, GRU[:1])}
    assert len(versions) == 3


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["backbone=gru"], "use one of sasrec, or package.module:Class"),
        ([GRU[0], "backbone_parameters.layer=2"], "unknown 'layer' - did you mean 'layers'"),
        ([GRU[0], "backbone_parameters.layers=two"], "'layers' must be a whole number"),
        (["loss=brp"], "did you mean 'bpr'"),
        (["loss_parameters.penalty=1"], "not for sampled_softmax"),
        (["evaluation.metrics={rank: examples.metrics.mrr:MRR}"], "this name is taken"),
        (["evaluation.metrics={mrr: examples.metrics.mrr:Mrr}"], "examples.metrics.mrr has no 'Mrr'"),
    ],
)
def test_what_cannot_be_made_is_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(FedMoEError, match=complaint):
        settings, dataset = _settings_and_data(words)
        own_metrics(settings.evaluation)
        build_model(settings, dataset)


def _settings_and_data(words: list[str]):  # type: ignore[no-untyped-def]
    settings, _ = load_settings([*SMALL, *words])
    return settings, load_dataset(settings)
