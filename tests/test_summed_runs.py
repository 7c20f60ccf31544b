"""Runs with exact sums from the front door: the same bits on every engine that trains clients with the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts_here import ONE_PROCESS
from safetensors.numpy import load_file

import sim
from data.registry import load_dataset
from fedmoe.loading import load_settings
from model.build import initial_arrays
from strategies import Release, epsilon_of

SUMS = (
    "dataset=synthetic data.synthetic.users=16 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=5 client_fraction=0.5 warmup_rounds=1 evaluate_every=2 hosts=1 "
    "client_cpus=0.5 num_rounds=3 checkpoint_every=0 dropout=0 sum_bits=16 local_epochs=1 max_windows=2 "
    "item_representation=id"
).split()

pytestmark = pytest.mark.usefixtures("hosts_here")  # what a run does is the same wherever its hosts are
SLOWLY = "strategy_parameters.eta=0.005"


class Runs:
    """Starts runs and reads what they leave."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address

    def __call__(self, *words: str) -> tuple[dict[str, np.ndarray], list[dict[str, Any]], dict[str, Any], Path]:
        """Return the last model, the lines of metrics.jsonl and result.json, without times, and the run's folder."""
        save = self.folder / "-".join(words).replace("/", "_")
        assert sim.main([*SUMS, f"ray_address={self.address}", f"save_dir={save}", *words]) == 0
        (run,) = save.iterdir()
        checkpoint = sorted((run / "checkpoints").iterdir())[-1]
        rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((run / "result.json").read_text())
        for each in [*rounds, result]:
            del each["seconds"]
            each.pop("phases", None)
        return load_file(checkpoint / "arrays.safetensors"), rounds, result, run


@pytest.fixture
def runs(ray_address: str, tmp_path: Path) -> Runs:
    return Runs(tmp_path, ray_address)


def same(one: Any, other: Any) -> None:
    for name, array in one[0].items():
        assert array.tobytes() == other[0][name].tobytes(), name
    assert one[1:3] == other[1:3]


def test_engines_and_hosts_give_the_same_bits(runs: Runs) -> None:
    """Hosts add up, or the server does, on one host, on two, or on Flower's own runtime; sums of floats differ."""
    merged = runs("engine=ray", SLOWLY)
    same(merged, runs("engine=ray", SLOWLY, "aggregate_in_hosts=false", "hosts=2"))
    same(merged, runs(*ONE_PROCESS, SLOWLY))
    plain = runs("engine=ray", SLOWLY, "sum_bits=0", "norm_multiple=0")
    # FedAdam steps by .005 at most, whichever way a gradient of nearly nothing points.
    assert all(np.abs(plain[0][name] - array).max() < 0.02 for name, array in merged[0].items())
    assert any((plain[0][name] != array).any() for name, array in merged[0].items())
    assert {"loss", "clipped"} <= merged[1][0]["train"].keys()
    assert merged[1][0]["train"]["loss"] == pytest.approx(plain[1][0]["train"]["loss"], rel=1e-5)
    report = (merged[3] / "report.md").read_text()
    assert "were used as exact sums alone, of integers of 16 bits; an update longer than 1 was clipped." in report
    assert "## Exact sums" not in (plain[3] / "report.md").read_text()
    assert len((merged[3] / "clients.csv").read_text().splitlines()) == 1 < 32
    assert len((plain[3] / "clients.csv").read_text().splitlines()) == 33


def test_stacks_add_up_what_their_clients_would_send(runs: Runs) -> None:
    """A stack trains its clients in float32 of other last digits, so that an entry may be rounded the other way."""
    once = "num_rounds=1", "strategy=fedavg", "client_weight=equal"
    stacked = runs("engine=vectorized", *once)
    same(stacked, runs("engine=vectorized", "aggregate_in_hosts=false", *once))
    alone = runs("engine=ray", *once)
    settings, _ = load_settings([*SUMS, *once])
    start = initial_arrays(settings, load_dataset(settings))
    moved = np.concatenate([(array - start[name]).ravel() for name, array in alone[0].items()])
    apart = np.concatenate([(stacked[0][name] - array).ravel() for name, array in alone[0].items()])
    step = 1.0 / 32767 / 8  # of the mean of 8 clients, for a norm of 1
    assert np.abs(apart).max() < 8.5 * step  # at most a step for each client
    assert np.linalg.norm(apart) < 0.02 * np.linalg.norm(moved)
    assert stacked[1][0]["train"] == pytest.approx(alone[1][0]["train"], rel=1e-4, abs=1e-6)


def test_a_private_run_of_sums(runs: Runs) -> None:
    """The same bits on two engines, noise in the model, the account in the run's folder, and no training metric."""
    words = SLOWLY, "client_fraction=1", "side=distributed", "noise_multiplier=2", "sum_bits=12", "evaluate_every=0"
    private = runs("engine=ray", *words)
    same(private, runs(*ONE_PROCESS, *words))
    ledger = json.loads((private[3] / "privacy.json").read_text())
    assert [entry["round"] for entry in ledger["rounds"]] == [1, 2, 3]
    assert ledger["epsilon"] == pytest.approx(epsilon_of([Release(2.0, 1.0, 3)], 1e-5))
    assert all(record["train"] == {} for record in private[1])
    report = (private[3] / "report.md").read_text()
    assert "against whoever sees the clients' sums, the server included" in report
    stacked = runs("engine=vectorized", *words)
    noise = np.concatenate([(stacked[0][name] - array).ravel() for name, array in private[0].items()])
    assert np.abs(noise).max() < 0.05  # the clients' noise is the same, and FedAdam steps by .005


def test_what_sums_cannot_serve_is_one_line(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["sum_bits=5"], "sum_bits (5) must be 0 or 8 to 24"),
        (["epsilon=8"], "side server clips single updates, which sum_bits hides: set side to distributed"),
        (["strategy=krum"], "privacy.sum_bits: Krum needs every client's reply"),
    ):
        assert sim.main([*SUMS, f"ray_address={runs.address}", f"save_dir={runs.folder}", *words]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert message in line
