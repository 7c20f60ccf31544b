"""A third modality by configuration alone, with the expert of ``examples/experts``, on two engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import sim
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings
from model.build import build_model
from model.stacked import StackedModel

SMALL = (
    "dataset=synthetic data.synthetic.users=12 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=0.5 warmup_rounds=1 evaluate_every=0 "
    "num_rounds=2 hosts=1 dropout=0 modalities.audio.expert=examples.experts.average:Average "
    "modalities.audio.expert_parameters.decay=5.0"
).split()


def test_it_runs_stacked_and_alone(hosts_here: None, tmp_path: Path) -> None:
    np.save(tmp_path / "audio.npy", np.random.default_rng(1).normal(size=(60, 6)).astype(np.float32))
    words = [*SMALL, f"modalities.audio.file={tmp_path / 'audio.npy'}", "aggregate_in_hosts=false"]
    found, metrics = {}, {}
    for engine in ("ray", "vectorized"):
        assert sim.main([*words, f"engine={engine}", f"save_dir={tmp_path / engine}"]) == 0
        (run_dir,) = (tmp_path / engine).iterdir()
        found[engine] = load_file(run_dir / "checkpoints" / "round-000002" / "arrays.safetensors")
        metrics[engine] = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
        assert "router-audio" in (run_dir / "report.md").read_text()
    assert {"experts.audio.output.weight", "norms.audio.weight", "experts.text.query.weight"} <= set(found["ray"])
    assert metrics["ray"]["shared"] == ["embedding", "backbone", "experts.visual", "experts.text", "experts.audio"]
    assert {"router-visual", "router-text", "router-audio", "view-audio"} <= set(metrics["ray"]["train"])
    start = build_model(load_settings(words)[0], load_dataset(load_settings(words)[0])).experts["audio"].output.weight
    assert not np.allclose(found["ray"]["experts.audio.output.weight"], start.detach().numpy(), atol=1e-6)
    for name, array in found["ray"].items():
        np.testing.assert_allclose(array, found["vectorized"][name], atol=3e-5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["modalities.audio.expert_parameters.dekay=5.0"], "unknown 'dekay' - did you mean 'decay'"),
        (["modalities.audio.expert=examples.experts.average:Mean"], "has no 'Mean'"),
        (["modalities.audio.expert=examples.experts.average:Memory"], "not a subclass of model.experts.Expert"),
    ],
)
def test_an_expert_that_cannot_be_made_is_refused(words: list[str], complaint: str) -> None:
    settings, _ = load_settings([*SMALL, "modalities.audio.file=noise", *words])
    with pytest.raises(FedMoEError, match=complaint):
        build_model(settings, load_dataset(settings))


def test_a_layer_that_does_not_stack_is_named() -> None:
    settings, _ = load_settings([*SMALL, "modalities.audio.file=noise"])
    model = build_model(settings, load_dataset(settings))
    model.experts["audio"].scale = torch.nn.PReLU()
    with pytest.raises(FedMoEError, match=r"layer 'scale' \(PReLU\) does not stack"):
        StackedModel(model)
