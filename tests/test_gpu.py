"""On a GPU: the same training as on a CPU up to rounding, and a simulation whose clients share the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plain_clients import train_locally

import sim
from data.registry import load_dataset
from data.sampling import training_part
from fedmoe.loading import load_settings
from fedmoe_client.learning.workbench import Workbench

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
WORDS = (
    "dataset=synthetic users=12 data.synthetic.items=60 dim=16 attention_dim=16 blocks=1 max_seq_len=10 memory_size=10 "
    "memory_refresh=5 num_negatives=20 dropout=0"
).split()


def trained(*words: str) -> dict[str, np.ndarray]:
    settings, _ = load_settings([*WORDS, *words])
    bench = Workbench(settings, load_dataset(settings))
    assert bench.device.type == settings.simulation.device
    train_locally(bench.model, training_part(bench.dataset.interactions.history(0)), settings, 0, 1)
    return bench.take(bench.names)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_training_is_that_of_a_cpu(precision: str, tolerance: float) -> None:
    expected, found = trained("device=cpu"), trained("device=cuda", f"precision={precision}")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=tolerance)


@pytest.mark.parametrize("engine", ["ray", "vectorized", "flower"])
def test_clients_share_the_device(engine: str, tmp_path: Path) -> None:
    words = [*WORDS, "num_rounds=2", "client_fraction=0.5", "client_cpus=0.5", "client_gpus=0.25", "device=cuda"]
    assert sim.main([*words, f"engine={engine}", f"save_dir={tmp_path}"]) == 0
