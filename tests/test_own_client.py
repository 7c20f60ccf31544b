"""Clients of one's own: SCAFFOLD, Ditto and FedProx of ``examples/clients`` against plain loops, on both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plain_clients
import pytest
import torch
from flwr.app import RecordDict
from plain_clients import local_sgd
from safetensors.numpy import load_file

import sim
from fedmoe.errors import FedMoEError
from fedmoe.wire import ROWS
from fedmoe_client.learning.client import FedMoEClient
from fedmoe_client.learning.own_client import LocalRound, OwnClient
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.private import InContext, NamedArrays

SMALL = (
    "dataset=synthetic data.synthetic.users=6 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=6 "
    "memory_size=6 memory_refresh=3 num_negatives=10 client_fraction=1 warmup_rounds=0 shared=all evaluate_every=0 "
    "num_rounds=3 hosts=1 dropout=0 batch_size=1 local_epochs=2 federation.guards.norm_multiple=0 learning_rate=0.2"
).split()


class Halved(OwnClient):
    """Sends half of its update, remembers how often it was asked, and says so: hooks that stack."""

    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        this.kept["rounds"] = this.kept.get("rounds", np.zeros(1)) + 1
        rows = {name: this.start[name][arrays.get(name + ROWS, ...)] for name in this.shared}
        return arrays | {name: np.asarray(0.5 * (rows[name] + arrays[name]), np.float32) for name in this.shared}


def bench_of(*words: str) -> Workbench:
    return plain_clients.bench_of(*SMALL, *words)


def run_on(engine: str, folder: Path, *words: str) -> dict[str, np.ndarray]:
    """Return the final arrays of a run."""
    given = [*SMALL, *words, f"engine={engine}", f"save_dir={folder / engine}"]
    assert sim.main(given) == 0
    (run_dir,) = (folder / engine).iterdir()
    return load_file(run_dir / "checkpoints" / "round-000003" / "arrays.safetensors")


def scaffold(bench: Workbench, clients: int, rounds: int) -> NamedArrays:
    """Return the model after SCAFFOLD's algorithm 1 with option II and all clients in each round."""
    model = bench.take(bench.names)
    zeros = {name: np.zeros_like(array) for name, array in model.items()}
    server, own = zeros, [zeros] * clients
    for number in range(1, rounds + 1):
        moved, changed = [], []
        for client in range(clients):
            drift = {name: torch.as_tensor(server[name] - own[client][name]) for name in model}
            after, steps = local_sgd(bench, model, client, number, lambda name, _, drift=drift: drift[name])  # type: ignore[misc]
            by = len(steps.batches) * bench.settings.training.learning_rate
            new = {name: own[client][name] - server[name] + (model[name] - after[name]) / by for name in model}
            moved.append({name: after[name] - model[name] for name in model})
            changed.append({name: new[name] - own[client][name] for name in model})
            own[client] = new
        model = {name: np.asarray(model[name] + np.mean([each[name] for each in moved], axis=0)) for name in model}
        server = {name: server[name] + np.mean([each[name] for each in changed], axis=0) for name in model}
    return model


def test_scaffold_is_the_papers_algorithm_on_both_engines(hosts_here: None, tmp_path: Path) -> None:
    words = "client=examples.clients.scaffold:ScaffoldClient strategy=examples.clients.scaffold:Scaffold".split()
    words += ["strategy_parameters.clients=6"]
    expected = scaffold(bench_of(), clients=6, rounds=3)
    for engine in ("ray", "vectorized"):
        found = run_on(engine, tmp_path, *words)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, atol=2e-5, err_msg=f"{engine} {name}")
    plain = run_on("ray", tmp_path / "plain", "strategy=fedavg", "client_weight=equal")
    assert max(np.abs(plain[name] - expected[name]).max() for name in expected) > 1e-3


def rounds_of(bench: Workbench, rounds: int, client: int = 2, **config: Any) -> tuple[FedMoEClient, NamedArrays]:
    """Let a client train some rounds from the same model; return it and what it sent last."""
    server = list(bench.take(bench.names).values())
    fed = FedMoEClient(bench, client, InContext(RecordDict()), simulated=True)
    for number in range(1, rounds + 1):
        sent, _, _ = fed.fit(server, {"shared": ["*"], "server-round": number, **config})
    return fed, dict(zip(fed.reply_names(["*"], sent), sent, strict=True))


def test_ditto_keeps_a_personal_model_near_the_shared_one() -> None:
    # The reference adds the term to a clipped gradient, Ditto to the loss: no gradient may be clipped here.
    unclipped = ("clip_norm=0", "clip_gate=0")
    bench = bench_of("client=examples.clients.ditto:Ditto", "client_parameters.penalty=0.7", *unclipped)
    start = bench.take(bench.names)
    fed, sent = rounds_of(bench, 2)
    personal, near = start, {name: torch.from_numpy(array) for name, array in start.items()}
    for number in (1, 2):
        personal, _ = local_sgd(bench, personal, 2, number, lambda name, own: 0.7 * (own - near[name]))
    fed.load_own(bench.names)
    assert fed.kept.keys() == start.keys()
    for name, array in personal.items():
        np.testing.assert_allclose(fed.kept[name], array, atol=2e-5, err_msg=name)
    plain, _ = local_sgd(bench, start, 2, 2, lambda *_: 0.0)
    for name in bench.names:
        np.testing.assert_allclose(sent[name], plain[name], atol=2e-5, err_msg=name)
    bench.load(start)
    _, _, metrics = fed.evaluate(list(start.values()), {"shared": ["*"], "split": "test"})
    assert metrics["rank"] != metrics["global-rank"]


def test_fedprox_is_the_term_that_the_strategy_asks_for() -> None:
    _, asked = rounds_of(bench_of(), 1, **{"proximal-mu": 0.3})
    _, own = rounds_of(bench_of("client=examples.clients.fedprox:FedProx", "client_parameters.mu=0.3"), 1)
    _, plain = rounds_of(bench_of(), 1)
    assert asked.keys() == own.keys()
    assert all(np.array_equal(asked[name], own[name]) for name in asked)
    assert any(not np.array_equal(plain[name], own[name]) for name in own)


def test_a_client_that_only_changes_what_it_sends_is_trained_in_a_stack(ray_address: str, tmp_path: Path) -> None:
    """In processes of Ray, which find the class by its name."""
    words = [f"client={__name__}:Halved", "aggregate_in_hosts=false", "strategy=fedavg", f"ray_address={ray_address}"]
    alone = run_on("ray", tmp_path, *words)
    stacked = run_on("vectorized", tmp_path, *words)
    for name, array in alone.items():
        np.testing.assert_allclose(stacked[name], array, atol=3e-5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["client=examples.clients.ditto:Ditto"], "'penalty' is missing"),
        (["client=examples.clients.ditto:Dito"], "has no 'Dito' - did you mean 'Ditto'"),
        (["client=ditto"], "use one of plain, or package.module:Class"),
        (["client=examples.clients.ditto:Ditto", "client_parameters.penalty=-1"], "must not be below 0"),
    ],
)
def test_a_client_that_cannot_be_made_is_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(FedMoEError, match=complaint):
        bench_of(*words)
