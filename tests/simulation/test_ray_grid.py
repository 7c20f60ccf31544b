"""RayGrid: order, private state, failures, timeouts, merged replies, stacks, saving and loading."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import simulation_apps as apps
from flwr.app import Message
from flwr.clientapp import ClientApp
from grids import CLIENTS, everyone, new_grid, nodes, send, visits

from fedmoe.errors import FailureKind, FedMoEError
from fedmoe.settings import SimulationSettings
from simulation.flower_runtime import FIRST_NODE_ID
from simulation.ray.client_files import CLIENTS_FILE
from simulation.ray.fleet import Chunk, RemoteHost
from simulation.ray.grid import RayGrid
from simulation.ray.host import clients_in

pytestmark = pytest.mark.usefixtures("connected")


def test_nodes_and_clients_are_paired_for_good(grid: RayGrid) -> None:
    assert list(grid.get_node_ids()) == everyone()
    pairs = grid.client_ids()
    assert dict(pairs) == {FIRST_NODE_ID + client: client for client in range(CLIENTS)}
    assert len(pairs) == CLIENTS and 1 not in pairs and FIRST_NODE_ID + CLIENTS not in pairs
    replies = send(grid, everyone(), "query")
    assert [pairs[reply.metadata.src_node_id] for reply in replies] == list(range(CLIENTS))
    assert [reply.content["config"]["client-id"] for reply in replies] == list(range(CLIENTS))


def test_replies_come_in_the_order_of_the_requests(grid: RayGrid) -> None:
    order = nodes(7, 0, 9, 2, 2, 1, 8, 3)
    requests = apps.requests(order, "query")
    replies = list(grid.send_and_receive(requests))
    assert [reply.metadata.src_node_id for reply in replies] == order
    assert [r.metadata.reply_to_message_id for r in replies] == [r.metadata.message_id for r in requests]
    assert len({reply.metadata.message_id for reply in replies}) == len(order)


def test_a_client_knows_who_it_is_and_stays_on_its_host(grid: RayGrid) -> None:
    told = [reply.content["config"] for reply in send(grid, everyone(), "evaluate")]
    assert {config["colour"] for config in told} == {"blue"}
    assert {config["clients"] for config in told} == {CLIENTS}
    assert {config["threads"] for config in told} == {"1"}
    assert all(config["heavy"] == [] for config in told), "torch was imported without a client asking for it"
    processes = [config["process"] for config in told]
    assert processes == [processes[client % 2] for client in range(CLIENTS)]
    assert len(set(processes) - {os.getpid()}) == 2


def test_push_and_pull(grid: RayGrid) -> None:
    ids = list(grid.push_messages(apps.requests(nodes(1, 2, 3), "query")))
    got: list[Message] = []
    end = time.monotonic() + 30
    while len(got) < 3 and time.monotonic() < end:
        got += grid.pull_messages(ids)
    assert sorted(reply.metadata.reply_to_message_id for reply in got) == sorted(ids)
    assert list(grid.pull_messages(ids)) == [], "a reply is handed out once"
    assert list(grid.send_and_receive([])) == []


def test_create_message_and_run() -> None:
    with new_grid(1) as grid:  # of its own: a message belongs to the run that was begun last
        content = apps.requests(nodes(0))[0].content
        message = grid.create_message(content, "train", FIRST_NODE_ID, "3", ttl=5.0)
        assert (message.metadata.group_id, message.metadata.ttl) == ("3", 5.0)
        assert message.metadata.run_id == grid.run.run_id
        grid.set_run(grid.run)


def test_private_state_advances_only_where_a_client_was_called(grid: RayGrid) -> None:
    send(grid, everyone())
    send(grid, nodes(0, 3), stateless=[0])
    assert visits(grid) == [1, 1, 1, 2, 1, 1, 1, 1, 1, 1]


def test_a_client_that_fails_is_rolled_back(grid: RayGrid) -> None:
    send(grid, everyone())
    replies = send(grid, everyone(), **{"raise": [4], "answer": [5], "nothing": [6], "leave": [7]})
    errors = {index: reply.error.reason for index, reply in enumerate(replies) if reply.has_error()}
    assert errors == {
        4: "RuntimeError: out of luck",
        5: "no wish",
        6: "TypeError: the client app returned NoneType, not a Message with reply_to=message",
        7: "SystemExit: 3",
    }
    assert {replies[index].error.code for index in errors} == {FailureKind.RAISED}
    assert visits(grid) == [2, 2, 2, 2, 1, 1, 1, 1, 2, 2]


def test_a_reply_that_cannot_be_sent_is_an_error(grid: RayGrid) -> None:
    replies = send(grid, nodes(1, 2), lock=[2])
    assert [reply.has_error() for reply in replies] == [False, True]
    assert str(replies[1].error.reason).startswith("its host failed: ")
    assert replies[1].error.code == FailureKind.RAISED


def test_a_client_cannot_spoil_the_message_of_the_next(grid: RayGrid) -> None:
    requests = apps.requests(nodes(0, 2, 4), spoil=[0, 2])
    replies = list(grid.send_and_receive(requests))
    plain = send(grid, nodes(4))[0]
    assert np.array_equal(replies[2].content["arrays"]["w"].numpy(), plain.content["arrays"]["w"].numpy())
    assert requests[0].content["config"]["words"] == ["a"]


def test_messages_with_contents_of_their_own(grid: RayGrid) -> None:
    requests = [apps.requests([node], **{"server-round": 5 + node})[0] for node in nodes(1, 2)]
    for reply, client in zip(grid.send_and_receive(requests), (1, 2), strict=True):
        start = apps.start_arrays()["w"].numpy()
        rng = np.random.default_rng([client, 5 + FIRST_NODE_ID + client])
        assert np.array_equal(reply.content["arrays"]["w"].numpy(), start + rng.normal(size=(30, 10)).astype("f4"))


def test_a_message_to_nobody_is_refused(grid: RayGrid) -> None:
    with pytest.raises(FedMoEError, match="node 1: the nodes are 2 to 11"):
        send(grid, [1])


def test_after_a_timeout_the_rest_is_given_up(grid: RayGrid) -> None:
    send(grid, everyone())
    began = time.monotonic()
    replies = send(grid, nodes(0, 2, 4, 1), timeout=1.0, sleep=[2], seconds=2.0)
    assert time.monotonic() - began < 1.9
    assert [reply.metadata.src_node_id for reply in replies] == nodes(0, 1)
    # Client 2 was at work, client 4 waited behind it on the same host and was not executed.
    assert visits(grid) == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]


def test_hosts_merge_the_replies_of_their_clients(grid: RayGrid) -> None:
    order = nodes(7, 0, 9, 2, 1, 8, 3)
    failing = {"raise": [2]}
    replies = send(grid, order, **failing)
    reduced = grid.send_and_reduce(apps.requests(order, **failing), apps.Summing)
    merged = [reply for reply in reduced if reply.has_content()]
    assert [clients_in(reply) for reply in merged] == [2, 4], "hosts 0 and 1, in this order"
    errors = [reply for reply in reduced if reply.has_error()]
    assert [reply.error.reason for reply in errors] == ["RuntimeError: out of luck"]
    good = [reply for reply in replies if reply.has_content()]
    for name in apps.start_arrays():
        total = sum(reply.content["arrays"][name].numpy().astype(np.float64) for reply in good)
        np.testing.assert_allclose(sum(r.content["arrays"][name].numpy() for r in merged), total, rtol=1e-12)
    assert grid.send_and_reduce([], apps.Summing) == []


def test_a_reducer_that_fails_costs_its_replies_and_nothing_else(grid: RayGrid) -> None:
    send(grid, everyone())
    reduced = grid.send_and_reduce(apps.requests(everyone()), apps.Refusing)
    reasons = {reply.metadata.src_node_id: str(reply.error.reason) for reply in reduced}
    assert len(reasons) == CLIENTS
    assert reasons[FIRST_NODE_ID + 4] == "its host failed: ValueError: no more of these"
    assert visits(grid) == [1] * CLIENTS, "the clients are where they were before"
    # Of a chunk with a reply that cannot be sent, too, and what comes after it goes on.
    assert [reply.has_error() for reply in send(grid, everyone(), lock=[4])] == [False] * 4 + [True] + [False] * 5
    assert visits(grid) == [2, 2, 2, 2, 1, 2, 2, 2, 2, 2]


def test_stacks_and_loads_change_nothing(grid: RayGrid) -> None:
    def outcomes(grid: RayGrid) -> tuple[list[bytes], bytes, list[int]]:
        single = [reply.content["arrays"]["w"].data for reply in send(grid, everyone())]
        reduced = grid.send_and_reduce(apps.requests(everyone()), apps.Summing)
        total = np.sum([reply.content["arrays"]["w"].numpy() for reply in reduced], axis=0)
        return single, total.astype(np.float32).tobytes(), visits(grid)

    expected = outcomes(grid)
    with new_grid(stacked="simulation_apps:train_stack") as other:
        assert outcomes(other) == expected
    with new_grid(loads=range(CLIENTS), state_memory=0) as other:
        assert outcomes(other) == expected


def test_no_outcome_is_kept_longer_than_it_takes_to_read(grid: RayGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Chunk] = []
    keep = RayGrid._keep

    def watched(grid: RayGrid, host: RemoteHost, chunk: Chunk, replies: list[Message]) -> None:
        done.append(chunk)
        keep(grid, host, chunk, replies)

    monkeypatch.setattr(RayGrid, "_keep", watched)
    send(grid, everyone())
    grid.send_and_reduce(apps.requests(everyone()), apps.Summing)
    assert len(done) >= 4
    assert [chunk.reference for chunk in done] == [None] * len(done), "the object store can let go of it"


@pytest.mark.parametrize("hosts", [1, 3])
def test_state_moves_to_another_number_of_hosts(grid: RayGrid, tmp_path: Path, hosts: int) -> None:
    send(grid, everyone(), stateless=[9])
    send(grid, nodes(0, 5))
    assert grid.save_clients(tmp_path) == CLIENTS - 1
    with new_grid(hosts) as second:
        send(second, nodes(9))
        assert second.load_clients(tmp_path) == CLIENTS - 1
        assert visits(second) == [2, 1, 1, 1, 1, 2, 1, 1, 1, 0]


def test_a_damaged_file_is_named(grid: RayGrid, tmp_path: Path) -> None:
    send(grid, everyone())
    with pytest.raises(FedMoEError, match=r"clients\.bin cannot be read"):
        grid.load_clients(tmp_path)
    grid.save_clients(tmp_path)
    file = tmp_path / CLIENTS_FILE
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FedMoEError, match=r"clients\.bin cannot be read \(cut short\)"):
        grid.load_clients(tmp_path)


def test_an_app_object_and_what_cannot_be_loaded() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: object) -> Message:
        return Message(message.content, reply_to=message)

    with new_grid(1, app) as grid:
        assert send(grid, nodes(0), "query")[0].content["config"]["words"] == ["a"]
        grid.close()
        with pytest.raises(FedMoEError, match="has been closed"):
            send(grid, nodes(0))
    with new_grid(1, "simulation_apps:not_an_app") as grid, pytest.raises(FedMoEError, match="is a int, not a"):
        send(grid, nodes(0))
    missing = r"^client app 'no_such_module:app' cannot be loaded: ModuleNotFoundError"
    with new_grid(1, "no_such_module:app") as grid, pytest.raises(FedMoEError, match=missing):
        send(grid, nodes(0))


def test_resources_that_are_not_there() -> None:
    def start(clients: int, **resources: float) -> None:
        RayGrid("simulation_apps:app", clients, {}, SimulationSettings.model_validate(resources))

    with pytest.raises(FedMoEError, match="no client fits: simulation.client_cpus 5000"):
        start(CLIENTS, client_cpus=5000)
    with pytest.raises(FedMoEError, match="simulation.hosts 4000: only"):
        start(CLIENTS, hosts=4000)
    with pytest.raises(FedMoEError, match="at least one client"):
        start(0)
    assert ray.is_initialized(), "a grid leaves Ray running that it has not started"
