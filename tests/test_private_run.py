"""A differentially private run from the front door: what is sent, what is written down, and that it resumes exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from safetensors.numpy import load_file

import sim
from strategies import PartialAggregation

PRIVATE = (
    "dataset=synthetic data.synthetic.users=40 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=0.5 warmup_rounds=2 evaluate_every=0 "
    "hosts=1 num_rounds=9 checkpoint_every=3 noise_multiplier=1 epsilon=8 clipping=adaptive side=client"
).split()


def arrays(run_dir: Path) -> dict[str, bytes]:
    checkpoint = sorted((run_dir / "checkpoints").iterdir())[-1]
    return {name: array.tobytes() for name, array in load_file(checkpoint / "arrays.safetensors").items()}


def test_a_private_run_sends_no_metrics_stops_at_its_budget_and_resumes(
    hosts_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    aggregate = PartialAggregation.aggregate_train

    def audited(self: PartialAggregation, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        sent.extend(dict(reply.content["metrics"].items()) for reply in replies)
        return aggregate(self, server_round, replies)

    monkeypatch.setattr(PartialAggregation, "aggregate_train", audited)
    assert sim.main([*PRIVATE, f"save_dir={tmp_path}"]) == 0
    (whole,) = tmp_path.iterdir()
    assert {tuple(sorted(metrics)) for metrics in sent} == {("norm_bit", "num-examples")}
    assert {metrics["num-examples"] for metrics in sent} == {1}

    ledger = json.loads((whole / "privacy.json").read_text())
    rounds = len(ledger["rounds"])
    assert rounds == 4  # of nine
    assert 0 < ledger["epsilon"] <= 8
    assert len({entry["norm"] for entry in ledger["rounds"]}) == rounds  # it adapts
    assert f"Spent: epsilon {ledger['epsilon']:.3f} of a budget of 8," in (whole / "report.md").read_text()
    cohorts = [json.loads(line)["clients"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert len(cohorts) == rounds and len(set(cohorts)) > 1  # a Poisson sample

    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(sorted((broken / "checkpoints").iterdir())[-1])
    (broken / "result.json").unlink()
    assert sim.main(["--resume", str(broken)]) == 0
    assert arrays(broken) == arrays(whole)
    assert json.loads((broken / "privacy.json").read_text()) == ledger
