"""RayGrid: order, private state, failures, timeouts, merged replies, stacks, saving and loading."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import simulation_apps as apps
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedmoe.errors import FedMoEError
from simulation.dispatch import FIRST_NODE_ID
from simulation.ray.cluster import start_ray
from simulation.ray.grid import RayGrid
from simulation.ray.host import Chunk, RayHost
from simulation.reduction import clients_in

CLIENTS = 10
CONFIG: dict[str, bool | int | float | str] = {"colour": "blue"}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    started = start_ray()
    yield
    if started:
        ray.shutdown()


def new_grid(hosts: int = 2, app: str | ClientApp = "simulation_apps:app") -> RayGrid:
    return RayGrid(app, CLIENTS, CONFIG, hosts=hosts, client_cpus=0.25)


@pytest.fixture(scope="module")
def shared() -> Iterator[RayGrid]:
    """A grid for the tests that leave nothing behind but visits."""
    with new_grid() as grid:
        yield grid


@pytest.fixture
def grid() -> Iterator[RayGrid]:
    with new_grid() as grid:
        yield grid


def nodes(*client_ids: int) -> list[int]:
    return [FIRST_NODE_ID + client_id for client_id in client_ids]


def everyone() -> list[int]:
    return nodes(*range(CLIENTS))


def send(
    grid: RayGrid, to: list[int], kind: str = "train", timeout: float | None = None, **config: object
) -> list[Message]:
    return list(grid.send_and_receive(apps.requests(to, kind, **config), timeout=timeout))


def visits(grid: RayGrid) -> list[int]:
    return [int(reply.content["config"]["visits"]) for reply in send(grid, everyone(), "evaluate")]


def test_nodes_and_clients_are_paired_for_good(shared: RayGrid) -> None:
    assert list(shared.get_node_ids()) == everyone()
    pairs = shared.client_ids()
    assert dict(pairs) == {FIRST_NODE_ID + client: client for client in range(CLIENTS)}
    assert len(pairs) == CLIENTS and 1 not in pairs and FIRST_NODE_ID + CLIENTS not in pairs
    replies = send(shared, everyone(), "query")
    assert [pairs[reply.metadata.src_node_id] for reply in replies] == list(range(CLIENTS))
    assert [reply.content["config"]["client-id"] for reply in replies] == list(range(CLIENTS))


def test_replies_come_in_the_order_of_the_requests(shared: RayGrid) -> None:
    order = nodes(7, 0, 9, 2, 2, 1, 8, 3)
    requests = apps.requests(order, "query")
    replies = list(shared.send_and_receive(requests))
    assert [reply.metadata.src_node_id for reply in replies] == order
    assert [r.metadata.reply_to_message_id for r in replies] == [r.metadata.message_id for r in requests]
    assert len({reply.metadata.message_id for reply in replies}) == len(order)


def test_a_client_knows_who_it_is_and_stays_on_its_host(shared: RayGrid) -> None:
    told = [reply.content["config"] for reply in send(shared, everyone(), "evaluate")]
    assert {config["colour"] for config in told} == {"blue"}
    assert {config["clients"] for config in told} == {CLIENTS}
    assert {config["threads"] for config in told} == {"1"}
    assert all(config["heavy"] == [] for config in told), "torch was imported without a client asking for it"
    processes = [config["process"] for config in told]
    assert processes == [processes[client % 2] for client in range(CLIENTS)]
    assert len(set(processes) - {os.getpid()}) == 2


def test_push_and_pull(shared: RayGrid) -> None:
    ids = list(shared.push_messages(apps.requests(nodes(1, 2, 3), "query")))
    got: list[Message] = []
    end = time.monotonic() + 30
    while len(got) < 3 and time.monotonic() < end:
        got += shared.pull_messages(ids)
    assert sorted(reply.metadata.reply_to_message_id for reply in got) == sorted(ids)
    assert list(shared.pull_messages(ids)) == [], "a reply is handed out once"
    assert list(shared.send_and_receive([])) == []


def test_create_message_and_run(shared: RayGrid) -> None:
    content = apps.requests(nodes(0))[0].content
    message = shared.create_message(content, "train", FIRST_NODE_ID, "3", ttl=5.0)
    assert (message.metadata.group_id, message.metadata.ttl) == ("3", 5.0)
    assert message.metadata.run_id == shared.run.run_id
    shared.set_run(shared.run)


def test_private_state_advances_only_where_a_client_was_called(grid: RayGrid) -> None:
    send(grid, everyone())
    send(grid, nodes(0, 3), stateless=[0])
    assert visits(grid) == [1, 1, 1, 2, 1, 1, 1, 1, 1, 1]


def test_a_client_that_fails_is_named_and_rolled_back(grid: RayGrid) -> None:
    send(grid, everyone())
    replies = send(grid, everyone(), **{"raise": [4], "nothing": [6], "leave": [7]})
    errors = {index: reply.error.reason for index, reply in enumerate(replies) if reply.has_error()}
    assert errors == {
        4: "client 4: train: RuntimeError: out of luck",
        6: "client 6: train: TypeError: the client app returned NoneType, not a Message with reply_to=message",
        7: "client 7: train: SystemExit: 3",
    }
    assert visits(grid) == [2, 2, 2, 2, 1, 2, 1, 1, 2, 2]


def test_a_reply_that_cannot_be_sent_is_an_error(shared: RayGrid) -> None:
    replies = send(shared, nodes(1, 2), lock=[2])
    assert [reply.has_error() for reply in replies] == [False, True]
    assert str(replies[1].error.reason).startswith("client 2: train: its host failed: ")


def test_a_client_cannot_spoil_the_message_of_the_next(shared: RayGrid) -> None:
    requests = apps.requests(nodes(0, 2, 4), spoil=[0, 2])
    replies = list(shared.send_and_receive(requests))
    plain = send(shared, nodes(4))[0]
    assert np.array_equal(replies[2].content["arrays"]["w"].numpy(), plain.content["arrays"]["w"].numpy())
    assert requests[0].content["config"]["words"] == ["a"]


def test_messages_with_contents_of_their_own(shared: RayGrid) -> None:
    requests = [apps.requests([node], **{"server-round": 5 + node})[0] for node in nodes(1, 2)]
    for reply, client in zip(shared.send_and_receive(requests), (1, 2), strict=True):
        start = apps.start_arrays()["w"].numpy()
        rng = np.random.default_rng([client, 5 + FIRST_NODE_ID + client])
        assert np.array_equal(reply.content["arrays"]["w"].numpy(), start + rng.normal(size=(30, 10)).astype("f4"))


def test_a_message_to_nobody_is_refused(shared: RayGrid) -> None:
    with pytest.raises(FedMoEError, match="node 1: the nodes are 2 to 11"):
        send(shared, [1])


def test_after_a_timeout_the_rest_is_given_up(grid: RayGrid) -> None:
    send(grid, everyone())
    began = time.monotonic()
    replies = send(grid, nodes(0, 2, 4, 1), timeout=1.0, sleep=[2], seconds=2.0)
    assert time.monotonic() - began < 1.9
    assert [reply.metadata.src_node_id for reply in replies] == nodes(0, 1)
    # Client 2 was at work, client 4 waited behind it on the same host and was not executed.
    assert visits(grid) == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]


def test_hosts_merge_the_replies_of_their_clients(shared: RayGrid) -> None:
    order = nodes(7, 0, 9, 2, 1, 8, 3)
    failing = {"raise": [2]}
    replies = send(shared, order, **failing)
    reduced = shared.send_and_reduce(apps.requests(order, **failing), apps.Summing)
    merged = [reply for reply in reduced if reply.has_content()]
    assert [clients_in(reply) for reply in merged] == [2, 4], "hosts 0 and 1, in this order"
    errors = [reply for reply in reduced if reply.has_error()]
    assert [reply.error.reason for reply in errors] == ["client 2: train: RuntimeError: out of luck"]
    good = [reply for reply in replies if reply.has_content()]
    for name in apps.start_arrays():
        total = sum(reply.content["arrays"][name].numpy().astype(np.float64) for reply in good)
        np.testing.assert_allclose(sum(r.content["arrays"][name].numpy() for r in merged), total, rtol=1e-12)
    assert shared.send_and_reduce([], apps.Summing) == []


def test_an_idle_host_executes_some_clients_of_another_one(grid: RayGrid, tmp_path: Path) -> None:
    send(grid, everyone())
    before = [reply.content["config"]["process"] for reply in send(grid, everyone(), "evaluate")]
    order = nodes(0, 2, 4, 6, 8)  # all of host 0
    for _ in range(2):
        reduced = grid.send_and_reduce(apps.requests(order), apps.Summing)
        assert [clients_in(reply) for reply in reduced] == [3, 2]
    total = sum(reply.content["arrays"]["w"].numpy() for reply in reduced)
    single = [reply.content["arrays"]["w"].numpy().astype(np.float64) for reply in send(grid, order)]
    np.testing.assert_allclose(total, np.sum(single, axis=0), rtol=1e-12)
    assert visits(grid) == [4, 1, 4, 1, 4, 1, 4, 1, 4, 1], "the guests brought their state and took it home"
    assert [reply.content["config"]["process"] for reply in send(grid, everyone(), "evaluate")] == before
    grid.send_and_reduce(apps.requests(order), apps.Summing)
    assert grid.save_clients(tmp_path) == CLIENTS
    with new_grid(1) as other:
        other.load_clients(tmp_path)
        assert visits(other)[::2] == [5] * 5


def test_a_reducer_that_fails_costs_its_replies_and_nothing_else(grid: RayGrid) -> None:
    send(grid, everyone())
    reduced = grid.send_and_reduce(apps.requests(everyone()), apps.Refusing)
    reasons = {reply.metadata.src_node_id: str(reply.error.reason) for reply in reduced}
    assert len(reasons) == CLIENTS
    assert reasons[FIRST_NODE_ID + 4] == "client 4: train: its host failed: ValueError: no more of these"
    assert visits(grid) == [1] * CLIENTS, "the clients are where they were before"
    # Of a chunk with a reply that cannot be sent, too, and what comes after it goes on.
    assert [reply.has_error() for reply in send(grid, everyone(), lock=[4])] == [False] * 4 + [True] + [False] * 5
    assert visits(grid) == [2, 2, 2, 2, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("merge", [False, True])
def test_stacks_and_loads_change_nothing(merge: bool) -> None:
    def outcome(**options: object) -> tuple[list[bytes], list[int]]:
        with RayGrid("simulation_apps:app", CLIENTS, CONFIG, hosts=2, client_cpus=0.25, **options) as grid:  # type: ignore[arg-type]
            if merge:
                reduced = grid.send_and_reduce(apps.requests(everyone()), apps.Summing)
                sums = [reply.content["arrays"]["w"].numpy() for reply in reduced]
                return [np.sum(sums, axis=0).astype(np.float32).tobytes()], visits(grid)
            return [reply.content["arrays"]["w"].data for reply in send(grid, everyone())], visits(grid)

    expected = outcome()
    assert outcome(stacked="simulation_apps:train_stack") == expected
    assert outcome(loads=range(CLIENTS), state_memory=0) == expected


def test_no_outcome_is_kept_longer_than_it_takes_to_read(grid: RayGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Chunk] = []
    finish = RayHost.finish

    def watched(host: RayHost) -> Chunk:
        done.append(finish(host))
        return done[-1]

    monkeypatch.setattr(RayHost, "finish", watched)
    send(grid, everyone())
    grid.send_and_reduce(apps.requests(everyone()), apps.Summing)
    assert len(done) >= 4
    assert [chunk.reference for chunk in done] == [None] * len(done), "the object store can let go of it"


@pytest.mark.parametrize("hosts", [1, 3])
def test_state_moves_to_another_number_of_hosts(tmp_path: Path, hosts: int) -> None:
    with new_grid() as first:
        send(first, everyone(), stateless=[9])
        send(first, nodes(0, 5))
        assert first.save_clients(tmp_path) == CLIENTS - 1
    with new_grid(hosts) as second:
        send(second, nodes(9))
        assert second.load_clients(tmp_path) == CLIENTS - 1
        assert visits(second) == [2, 1, 1, 1, 1, 2, 1, 1, 1, 0]


def test_a_damaged_file_is_named(shared: RayGrid, tmp_path: Path) -> None:
    with pytest.raises(FedMoEError, match=r"clients\.json cannot be read"):
        shared.load_clients(tmp_path)
    shared.save_clients(tmp_path)
    file = tmp_path / "clients-00001.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FedMoEError, match=r"clients-00001\.bin cannot be read \(cut short\)"):
        shared.load_clients(tmp_path)


def test_an_app_object_and_what_cannot_be_loaded() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: object) -> Message:
        return Message(message.content, reply_to=message)

    with new_grid(1, app) as grid:
        assert send(grid, nodes(0), "query")[0].content["config"]["words"] == ["a"]
    with new_grid(1, "simulation_apps:not_an_app") as grid, pytest.raises(FedMoEError, match="is a int, not a"):
        send(grid, nodes(0))
    missing = r"^client app 'no_such_module:app' cannot be loaded: ModuleNotFoundError"
    with new_grid(1, "no_such_module:app") as grid, pytest.raises(FedMoEError, match=missing):
        send(grid, nodes(0))
    with new_grid(1, "simulation_apps:app") as grid:
        grid.close()
        with pytest.raises(FedMoEError, match="has been closed"):
            send(grid, nodes(0))


def test_resources_that_are_not_there() -> None:
    with pytest.raises(FedMoEError, match="no client fits: simulation.client_cpus 5000"):
        RayGrid("simulation_apps:app", CLIENTS, CONFIG, client_cpus=5000)
    with pytest.raises(FedMoEError, match="simulation.hosts 4000: only"):
        RayGrid("simulation_apps:app", CLIENTS, CONFIG, hosts=4000)
    with pytest.raises(FedMoEError, match="at least one client"):
        RayGrid("simulation_apps:app", 0, CONFIG)
    assert ray.is_initialized(), "a grid leaves Ray running that it has not started"
