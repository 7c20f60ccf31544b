"""The NumPyClient and its app: what is shared travels, what is private stays, advances and survives."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmoe.errors import FailureKind
from fedmoe.loading import load_settings, to_run_config
from fedmoe.modalities import GROUPS
from fedmoe.wire import packed_bytes, to_record, unpack
from fedmoe_client.app import app
from fedmoe_client.learning.client import FedMoEClient, workbench
from fedmoe_client.learning.evaluation import catalogue_side
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.private import InContext

WORDS = (
    "dataset=synthetic users=12 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=6 memory_size=6 "
    "memory_refresh=3 num_negatives=5 max_windows=0 learning_rate=0.5 batch_size=1 item_updates=dense"
).split()
RUN_CONFIG = to_run_config(load_settings(WORDS)[0])
SHARED = ["embedding", "backbone", "experts.*"]
PRIVATE = [group for group in GROUPS if group not in SHARED]


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return workbench(RUN_CONFIG)


@pytest.fixture(scope="module")
def server(bench: Workbench) -> list[np.ndarray]:
    return list(bench.take(bench.names).values())


def client(bench: Workbench, state: RecordDict, user: int = 3) -> FedMoEClient:
    return FedMoEClient(bench, user, InContext(state))


def config(server_round: int = 1, shared: list[str] = SHARED, **more: Any) -> dict[str, Any]:
    return {"server-round": server_round, "shared": shared, "split": "test", **more}


def test_only_the_shared_arrays_come_back(bench: Workbench, server: list[np.ndarray]) -> None:
    state = RecordDict()
    arrays, weight, metrics = client(bench, state).fit(server, config())
    names = bench.names_in(tuple(SHARED))
    assert [array.shape for array in arrays] == [tuple(bench.parameters[name].shape) for name in names]
    assert weight == len(bench.dataset.interactions.history(3)) - 3
    assert np.isfinite(list(metrics.values())).all()
    assert list(InContext(state).load()) == bench.names_in(tuple(PRIVATE))


def test_private_parameters_of_an_older_checkpoint_are_read() -> None:
    state = RecordDict({"private": ArrayRecord({"gate.value": Array(np.array(0.5, np.float32))})})
    assert InContext(state).load() == {"gate.value": np.float32(0.5)}
    InContext(state).save({"gate.value": np.array(0.25, np.float32)})
    assert InContext(state).load() == {"gate.value": np.float32(0.25)}


def test_private_parameters_advance_from_round_to_round(bench: Workbench, server: list[np.ndarray]) -> None:
    state = RecordDict()
    gates = []
    for server_round in (1, 2, 3):
        client(bench, state).fit(server, config(server_round))
        gates.append(float(InContext(state).load()["gate.value"]))
    assert len({float(server[bench.names.index("gate.value")]), *gates}) == 4


def test_a_client_starts_from_the_servers_private_value_and_then_keeps_its_own(
    bench: Workbench, server: list[np.ndarray]
) -> None:
    state = RecordDict()
    other = [array.copy() for array in server]
    other[bench.names.index("gate.value")] += 5.0
    client(bench, state).fit(other, config())
    first = float(InContext(state).load()["gate.value"])
    assert first == pytest.approx(5.1, abs=1.0)
    client(bench, state).fit(server, config(2))  # the server's copy differs now, and does not matter
    assert float(InContext(state).load()["gate.value"]) == pytest.approx(first, abs=1.0)


def test_what_becomes_shared_again_is_the_servers(bench: Workbench, server: list[np.ndarray]) -> None:
    state = RecordDict()
    client(bench, state).fit(server, config(shared=["embedding", "backbone"]))
    assert state
    arrays, _, _ = client(bench, state).fit(server, config(2, list(GROUPS)))
    fresh, _, _ = client(bench, RecordDict()).fit(server, config(2, list(GROUPS)))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, fresh, strict=True))
    assert not state


def test_evaluation_is_personal_and_global(bench: Workbench, server: list[np.ndarray]) -> None:
    state = RecordDict()
    _, _, before = client(bench, state).evaluate(server, config())
    assert {name for name in before if name.startswith("global-")} == {
        f"global-{n}" for n in before if "global" not in n
    }
    InContext(state).save({"gate.value": np.array(50.0, np.float32)})
    personal = []
    for user in range(12):
        loss, examples, found = client(bench, state, user).evaluate(server, config())
        assert examples == 1
        assert loss == 1.0 - found["ndcg@10"]
        personal.append(found["hr@10"] != found["global-hr@10"] or found["ndcg@10"] != found["global-ndcg@10"])
    assert any(personal)


@pytest.mark.parametrize("name", ["items.ids.weight", "experts.visual.query.weight", "experts.text.query.bias"])
def test_what_is_kept_of_the_catalogue_follows_the_arrays(bench: Workbench, name: str) -> None:
    assert name in bench._item_names
    rng = np.random.default_rng(0)
    first = {name: rng.normal(size=tuple(each.shape)).astype(np.float32) for name, each in bench.parameters.items()}
    second = first | {name: first[name] + 1.0}
    for arrays in (first, second, first):
        bench.load(arrays)
        assert torch.equal(bench.catalogue_side(arrays).vectors, catalogue_side(bench.model).vectors)
        for expert, queries in catalogue_side(bench.model).queries.items():
            assert torch.equal(bench.catalogue_side(arrays).queries[expert], queries)
    other_gate = first | {"gate.value": first["gate.value"] + 1.0}
    assert bench.catalogue_side(other_gate) is bench.catalogue_side(first)


def test_a_router_of_ones_own_takes_nothing_from_the_other_clients(bench: Workbench) -> None:
    """What the server's model makes of the items is kept while clients with routers of their own come in between."""
    rng = np.random.default_rng(0)
    server = {name: rng.normal(size=tuple(each.shape)).astype(np.float32) for name, each in bench.parameters.items()}
    bench.load(server)
    kept = bench.catalogue_side(server)
    for _ in range(2):
        own = server | {name: server[name] + 1.0 for name in bench.groups["router"]}
        bench.load(own)
        routed = bench.catalogue_side(own).logits
        assert routed is not None and torch.equal(routed, catalogue_side(bench.model).logits)
        assert not torch.equal(routed, kept.logits)
        bench.load(server)
        assert bench.catalogue_side(server) is kept


def test_proximal_mu_holds_the_shared_parameters_back(bench: Workbench, server: list[np.ndarray]) -> None:
    moved = []
    for mu in (0.0, 1.0):
        arrays, _, _ = client(bench, RecordDict(), 5).fit(server, config(**{"proximal-mu": mu}))
        shared = bench.names_in(tuple(SHARED))
        start = [array for name, array in zip(bench.names, server, strict=True) if name in shared]
        moved.append(sum(float(np.square(a - b).sum()) for a, b in zip(arrays, start, strict=True)))
    assert moved[1] < 0.9 * moved[0]


def message(kind: str, arrays: dict[str, np.ndarray], **fields: Any) -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(RecordDict({"arrays": to_record(arrays), "config": ConfigRecord(config(**fields))}), 7, kind)


def context(user: int = 3) -> Context:
    return Context(1, 7, {"partition-id": user, "num-partitions": 12}, RecordDict(), dict(RUN_CONFIG))


def test_the_app_keeps_names(bench: Workbench, server: list[np.ndarray]) -> None:
    arrays = dict(zip(bench.names, server, strict=True))
    reordered = dict(reversed(arrays.items()))
    replies = [app(message("train", given), context()) for given in (arrays, reordered)]
    first, second = (unpack(packed_bytes(reply.content["arrays"])) for reply in replies)
    assert list(first) == list(second) == bench.names_in(tuple(SHARED))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert all(reply.content["metrics"]["num-examples"] > 0 for reply in replies)
    evaluated = app(message("evaluate", arrays), context())
    assert evaluated.content["metrics"]["num-examples"] == 1
    assert app(message("query", arrays), context(5)).content["config"]["client-id"] == 5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda arrays: arrays.pop("gate.value"), "no parameter 'gate.value'"),
        (lambda arrays: arrays.update(extra=np.zeros(2, np.float32)), "no parameter 'extra'"),
        (lambda arrays: arrays.update({"gate.value": np.zeros(2, np.float32)}), r"'gate.value' has the shape \(2,\)"),
    ],
)
def test_another_models_arrays_are_refused_by_name(
    bench: Workbench, server: list[np.ndarray], change: Any, complaint: str
) -> None:
    arrays = dict(zip(bench.names, server, strict=True))
    change(arrays)
    answer = app(message("train", arrays), context())
    assert answer.error.code == FailureKind.RAISED
    assert re.search(complaint, answer.error.reason)


def test_a_client_beyond_the_data_set_is_refused(bench: Workbench, server: list[np.ndarray]) -> None:
    answer = app(message("train", dict(zip(bench.names, server, strict=True))), context(99))
    assert answer.error.reason == "FedMoEError: see the client's own log"


@pytest.mark.parametrize("simulated", [True, False])
def test_a_failed_training_keeps_nothing_and_only_a_simulated_client_says_what_was_raised(
    bench: Workbench, server: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, simulated: bool
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("first line\nsecond line")

    arrays, mine = dict(zip(bench.names, server, strict=True)), context()
    mine.run_config["simulated"] = simulated
    app(message("train", arrays), mine)
    kept = {name: array.copy() for name, array in InContext(mine.state).load().items()}
    monkeypatch.setattr("fedmoe_client.learning.client.to_send", fail)  # after the training
    answer = app(message("train", arrays, **{"server-round": 2}), mine)
    said = "ValueError: " + ("first line second line" if simulated else "see the client's own log")
    assert (answer.error.code, answer.error.reason) == (FailureKind.RAISED, said)
    assert all(np.array_equal(kept[name], array) for name, array in InContext(mine.state).load().items())
