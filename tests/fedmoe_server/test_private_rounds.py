"""A private run stops when its budget is spent, and keeps what it has spent in its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedmoe.settings import PrivacySettings
from fedmoe_server.report.run_folder import PRIVACY, write_document
from fedmoe_server.rounds.record import LoopState
from strategies import PrivacyLedger, build_strategy, private


def test_the_loop_stops_at_the_budget(fakes: Any, tmp_path: Path) -> None:
    """The last round that the budget allows is evaluated and kept like the last one of all."""
    grid = fakes.FakeGrid(40)
    settings = fakes.make_settings(num_rounds=9, client_fraction=0.5, evaluate_every=50)
    budget = settings.model_copy(update={"privacy": PrivacySettings(epsilon=5.0, noise_multiplier=1.2)})
    mechanism = private(build_strategy("fedavg", {}), budget, 1)
    ledger = PrivacyLedger(budget, mechanism, partial(write_document, tmp_path / PRIVACY))
    result = replace(fakes.make_loop(grid, tmp_path, settings), ledger=ledger).run(LoopState(fakes.model_arrays()))
    assert result.stopped_early
    assert 1 < result.rounds < 9
    assert not ledger.allows_another()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["validation"] is not None
    assert [record["privacy"]["round"] for record in records] == list(range(1, result.rounds + 1))
    assert json.loads((tmp_path / PRIVACY).read_text())["rounds"] == [record["privacy"] for record in records]
    assert list((tmp_path / "checkpoints").iterdir())
