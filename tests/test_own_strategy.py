"""The strategy of the docs, ten lines of one's own, in all engines; tests/deployment runs it over gRPC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hosts_here import ONE_PROCESS
from safetensors.numpy import load_file

import sim

ROOT = Path(__file__).parents[1]
SMALL = (
    "dataset=synthetic data.synthetic.users=12 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=0.5 warmup_rounds=1 evaluate_every=0 "
    "num_rounds=2 hosts=1 dropout=0 strategy=server_step:ServerStep strategy_parameters.eta=0.5"
).split()


def test_it_runs_in_all_engines(
    hosts_here: None, ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "strategies"))
    found = {}
    for engine, words in {"ray": ["engine=ray"], "flower": ONE_PROCESS, "vectorized": ["engine=vectorized"]}.items():
        more = ["aggregate_in_hosts=false", f"ray_address={ray_address}"]
        assert sim.main([*SMALL, *words, *more, f"save_dir={tmp_path / engine}"]) == 0
        (run_dir,) = (tmp_path / engine).iterdir()
        found[engine] = load_file(run_dir / "checkpoints" / "round-000002" / "arrays.safetensors")
    for name, array in found["ray"].items():
        assert array.tobytes() == found["flower"][name].tobytes()
        np.testing.assert_allclose(array, found["vectorized"][name], atol=3e-5)
