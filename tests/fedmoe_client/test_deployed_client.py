"""A deployed client: the same numbers as a simulated one, its own history, its own catalogue, its own state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_client import PRIVATE, SHARED, USER, WORDS, Deployment
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from data.dataset import save_catalogue
from fedmoe.errors import FedMoEError, TellableError
from fedmoe.loading import load_settings
from fedmoe.modalities import GROUPS
from fedmoe.wire import packed_bytes, unpack
from fedmoe_client.app import app
from fedmoe_client.device.joining import join
from fedmoe_client.device.node import Node, node_from
from fedmoe_client.device.task import Task, perform
from fedmoe_client.learning import workbench as workbench_module
from fedmoe_client.learning.client import ROWS, workbench
from fedmoe_client.store.folder import StateFolder
from fedmoe_client.store.identity import identity_of
from fedmoe_client.store.private import kept_memory, latest_private, private_name


def simulated(deployment: Deployment, rounds: int) -> list[dict[str, bytes]]:
    """Return what the same user sends in a simulation."""
    state, sent = RecordDict(), []
    for number in range(1, rounds + 1):
        config = {"server-round": number, "shared": SHARED}
        packed = packed_bytes(deployment.arrays())
        arrays, _, _ = perform(Task("train", packed, config, Node(USER), deployment.run_config, "s"), state)
        assert arrays is not None
        sent.append({name: array.tobytes() for name, array in arrays.items()})
    return sent


def private_gate(deployment: Deployment) -> float:
    version = identity_of(deployment.settings, deployment.dataset)["model"]
    return float(latest_private(StateFolder(deployment.state_dir).load(private_name(version)))["gate.value"])


def identity(deployment: Deployment, done: int = 0) -> dict[str, Any]:
    return {**identity_of(deployment.settings, deployment.dataset), "round": done}


def joins(deployment: Deployment, done: int = 0, session: str = "1", **node: Any) -> int:
    return join(identity(deployment, done), node_from(deployment.node(**node)), deployment.run_config, "run", session)


@pytest.mark.parametrize(
    ("server", "client", "differ"), [("0.2.1", "0.2.9", False), ("0.2.1", "0.1.9", True), ("0.2.1", "", False)]
)
def test_versions_that_differ_are_told_by_name(deployment: Deployment, server: str, client: str, differ: bool) -> None:
    told, node = {**identity(deployment), "fedmoe": server}, node_from(deployment.node(fedmoe=client))
    if not differ:
        assert join(told, node, deployment.run_config, "run", "1") == USER
        return
    with pytest.raises(
        TellableError, match=r"started by FedMoE 0.1.9 and the server is 0.2.1: install 0.2.1 on the cl"
    ):
        join(told, node, deployment.run_config, "run", "1")


def test_a_training_that_cannot_be_answered_keeps_nothing(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no reply")

    deployment.train(1)
    store, version = StateFolder(deployment.state_dir), workbench(deployment.run_config).identity["model"]
    before = store.load(private_name(version))
    monkeypatch.setattr("fedmoe_client.learning.client.private_reply", fail)
    task = deployment.task("train", 2)
    with pytest.raises(ValueError, match="no reply"):
        perform(replace(task, config={**task.config, "clipping_norm": 1.0}))
    after = store.load(private_name(version))
    assert before is not None and after is not None
    assert before.about == after.about
    assert all(np.array_equal(array, after.arrays[name]) for name, array in before.arrays.items())


def test_a_deployed_client_sends_the_same_bits_as_a_simulated_one(deployment: Deployment) -> None:
    expected = simulated(deployment, 3)
    assert [deployment.train(number) for number in (1, 2, 3)] == expected
    save_catalogue(deployment.dataset, deployment.folder / "catalogue")
    catalogue = {
        "catalogue": str(deployment.folder / "catalogue"),
        "state_dir": str(deployment.folder / "second"),
    }
    assert [deployment.train(number, **catalogue) for number in (1, 2, 3)] == expected
    stateless = {"state_dir": None, "warm": None}
    assert deployment.train(1, **stateless) == expected[0]


def test_evaluation_is_that_of_the_simulation_with_sampled_candidates_too(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, words=[*WORDS, "protocol=sampled", "num_candidates=10"])
    config = {"server-round": 1, "shared": list(GROUPS), "split": "test"}
    arrays = packed_bytes(deployment.arrays())
    _, expected, _ = perform(Task("evaluate", arrays, config, Node(USER), deployment.run_config, "s"), RecordDict())
    _, found, _ = perform(deployment.task("evaluate", 1, shared=list(GROUPS)))
    assert found == expected


def test_state_survives_a_crash_and_belongs_to_the_model_not_to_the_run(deployment: Deployment) -> None:
    expected = simulated(deployment, 3)
    deployment.train(1)
    workbench_module.made_workbench.cache_clear()
    workbench_module._workbench_of.cache_clear()  # all that a process had in its memory
    assert deployment.train(2) == expected[1]
    gate = private_gate(deployment)
    record, _, _ = perform(deployment.task("evaluate", 1, run="another"))
    assert record is None
    first = deployment.train(1, run="another")
    assert first != expected[0]  # the second run goes on from what the first has left
    assert private_gate(deployment) != gate


def test_another_model_starts_afresh_and_finds_its_own_again(deployment: Deployment, tmp_path: Path) -> None:
    deployment.train(1)
    other = Deployment(deployment.folder, words=[*WORDS, "dim=12", "heads=1"])
    other.train(1)
    versions = {path.stem for path in deployment.state_dir.glob("private-*.state")}
    assert len(versions) == 2
    assert deployment.train(2) == simulated(deployment, 2)[1]


def test_new_items_are_picked_up_in_the_next_round(deployment: Deployment) -> None:
    items = deployment.dataset.interactions.history(USER)
    deployment.write_history(items[:6])
    _, before, _ = perform(deployment.task("train", 1))
    deployment.write_history(items[:8])
    _, after, _ = perform(deployment.task("train", 2))
    assert (before["num-examples"], after["num-examples"]) == (3, 5)
    (state,) = deployment.state_dir.glob("private-*.state")
    memory = kept_memory(StateFolder(deployment.state_dir).load(state.stem))
    assert memory["history"].tolist() == items[2:8].tolist()


def test_a_silo_trains_on_all_its_users_and_counts_them(deployment: Deployment) -> None:
    silo = deployment.folder / "silo"
    silo.mkdir()
    known = deployment.dataset.interactions
    for user in (1, 4, 7):
        ids = known.item_ids[known.history(user)]
        (silo / f"user{user}.txt").write_text("".join(f"{item}\n" for item in ids))
    record, trained, _ = perform(deployment.task("train", 1, history=str(silo)))
    assert record is not None
    assert trained["num-examples"] == sum(len(known.history(user)) - 3 for user in (1, 4, 7))
    assert np.isfinite(list(trained.values())).all()
    _, evaluated, _ = perform(deployment.task("evaluate", 1, history=str(silo)))
    assert evaluated["num-examples"] == 3
    alone = {path.name for path in silo.iterdir()}
    assert alone == {"user1.txt", "user4.txt", "user7.txt"}


def test_a_resumed_server_finds_its_clients_where_they_were(deployment: Deployment) -> None:
    joins(deployment)
    sent = [deployment.train(number) for number in (1, 2, 3, 4)]
    joins(deployment, done=2, session="2")
    evaluated = private_gate(deployment)
    assert [deployment.train(number) for number in (3, 4)] == sent[2:]
    joins(deployment, done=2, session="2")  # the node was started again: the server's query is the same
    assert private_gate(deployment) != evaluated


def test_a_client_of_another_catalogue_or_model_refuses_with_both(deployment: Deployment) -> None:
    server = identity(deployment)
    node = node_from(deployment.node())
    for key, words in (
        ("catalogue", "catalogue of items"),
        ("text-features", "text features"),
        ("visual-features", "visual features"),
        ("audio-features", "audio features"),
        ("model", "model version"),
    ):
        own = server.get(key, "none")
        with pytest.raises(FedMoEError, match=f"{words} is not the server's: abc at the server, {own} at the client"):
            join({**server, key: "abc"}, node, deployment.run_config, "run", "1")
    assert not (deployment.state_dir / "server.json").exists()


def test_what_the_query_said_holds_for_the_whole_run(deployment: Deployment) -> None:
    save_catalogue(deployment.dataset, deployment.folder / "catalogue")
    catalogue = {"catalogue": str(deployment.folder / "catalogue")}
    joins(deployment, **catalogue)
    deployment.train(1, **catalogue)
    values = np.load(deployment.folder / "catalogue" / "text_values.npy")
    (deployment.folder / "catalogue").rename(deployment.folder / "old")
    values[1] += 1
    (deployment.folder / "old").rename(deployment.folder / "new")
    np.save(deployment.folder / "new" / "text_values.npy", values)
    with pytest.raises(FedMoEError, match="text features is not the server's"):
        deployment.train(2, catalogue=str(deployment.folder / "new"))


def test_a_history_that_is_too_short_joins_when_it_has_grown(deployment: Deployment) -> None:
    items = deployment.dataset.interactions.history(USER)
    deployment.write_history(items[:4])
    with pytest.raises(FedMoEError, match="does not have 5 items of the catalogue yet"):
        joins(deployment)
    deployment.write_history(items[:5])
    assert joins(deployment) == USER


def message(kind: str, content: dict[str, Any]) -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(RecordDict(content), 7, kind)


def context(deployment: Deployment, **node: Any) -> Context:
    return Context(1, 7, deployment.node(**node), RecordDict(), dict(deployment.run_config))


def test_the_app_answers_a_query_with_the_clients_number(deployment: Deployment) -> None:
    query = message("query", {"config": ConfigRecord(identity(deployment))})
    assert app(query, context(deployment)).content["config"]["client-id"] == USER
    nameless = {"partition_id": None, "state_dir": str(deployment.folder / "drawn")}
    drawn = app(query, context(deployment, **nameless)).content["config"]["client-id"]
    again = app(message("query", {}), context(deployment, **nameless)).content["config"]["client-id"]
    assert drawn == again > 1000


def test_no_private_name_is_in_any_message_and_nothing_is_left_with_flower(deployment: Deployment) -> None:
    bench = workbench(deployment.run_config)
    private = set(bench.names_in(tuple(PRIVATE)))
    config = {"server-round": 1, "shared": SHARED, "split": "validation"}
    for kind in ("train", "evaluate"):
        place = context(deployment)
        reply = app(message(kind, {"arrays": deployment.arrays(), "config": ConfigRecord(config)}), place)
        names = {name for record in reply.content.array_records.values() for name in unpack(packed_bytes(record))}
        assert not names & private
        assert names - {ROWS} == (set(bench.names_in(tuple(SHARED))) if kind == "train" else set())
        assert not any(isinstance(record, ArrayRecord) for record in place.state.values())
        assert set(reply.content) <= {"arrays", "metrics"}
        assert all(isinstance(value, int | float) for value in reply.content["metrics"].values())


def test_model_versions_differ_where_parameters_would(deployment: Deployment) -> None:
    def version(*words: str) -> str:
        return identity_of(load_settings([*WORDS, *words])[0], deployment.dataset)["model"]

    assert version() == version("gate_init=0.3", "dropout=0.5", "seed=3")
    assert len({version(), version("dim=12", "heads=1"), version("fusion=score"), version("heads=1")}) == 4
