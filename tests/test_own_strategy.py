"""The strategy of the docs, ten lines of one's own, in both engines; tests/deployment runs it over gRPC."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

import sim

ROOT = Path(__file__).parents[1]
SMALL = (
    "dataset=synthetic data.synthetic.users=12 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=0.5 warmup_rounds=1 evaluate_every=0 "
    "num_rounds=2 client_cpus=0.5 strategy=server_step:ServerStep strategy_parameters.eta=0.5"
).split()


def test_it_runs_in_both_engines_and_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "strategies"))
    found = []
    for engine in ("ray", "flower"):
        assert sim.main([*SMALL, "aggregate_in_hosts=false", f"engine={engine}", f"save_dir={tmp_path / engine}"]) == 0
        (run_dir,) = (tmp_path / engine).iterdir()
        found.append(load_file(run_dir / "checkpoints" / "round-000002" / "arrays.safetensors"))
    assert {name: array.tobytes() for name, array in found[0].items()} == {
        name: array.tobytes() for name, array in found[1].items()
    }
