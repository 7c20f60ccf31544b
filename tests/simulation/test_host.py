"""The host without Ray: shared records, chunks, private state, stacks; and the loading of apps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simulation_apps as apps
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.errors import FailureKind, FedMoEError
from simulation.client_apps import load_client_app, pickled
from simulation.flower_runtime import begin_run, error_reply, number_message
from simulation.ray.host import (
    CHUNK_BYTES,
    CHUNK_MESSAGES,
    MERGED_MESSAGES,
    STACKED_MESSAGES,
    ClientHost,
    StateTable,
    chunk_size,
    clients_in,
    split_shared,
)
from simulation.ray.work import HostSettings, Job, NotReceived, Outcome, Shared, Work

CALL = 7


def settings(app: str | bytes = "simulation_apps:app", stacked: str | None = None) -> HostSettings:
    return HostSettings(app, 4, 1, {"colour": "green"}, stacked)


def new_host(stacked: str | None = None, shared: Shared = Shared([])) -> ClientHost:  # noqa: B008
    host = ClientHost(settings(stacked=stacked))
    host.load()
    host.receive(CALL, shared)
    return host


def work(host: ClientHost, jobs: Sequence[Job], last: bool = True) -> Outcome:
    return host.execute(Work(CALL, jobs, last))


def execute(host: ClientHost, jobs: Sequence[Job]) -> list[Message]:
    return work(host, jobs).replies


def visits(host: ClientHost, *clients: int) -> list[int]:
    replies = execute(host, [job(client, "evaluate") for client in clients])
    return [int(reply.content["config"]["visits"]) for reply in replies]


def job(client_id: int, kind: str = "train", **config: object) -> Job:
    begin_run()
    request = apps.requests([client_id + 2], kind, **config)[0]
    number_message(request, f"m{client_id}")
    return Job(client_id, request.metadata, dict(request.content))


def test_shared_records_until_forgotten() -> None:
    host = new_host(shared=Shared([apps.start_arrays()]))
    plain = job(0)
    shared = Job(0, plain.metadata, {"arrays": 0, "config": plain.content["config"]})
    spoil = job(1, spoil=[1]).content["config"]
    first, second, third = execute(host, [plain, Job(1, plain.metadata, {"arrays": 0, "config": spoil}), shared])
    assert second.has_content() and first.content["arrays"] == third.content["arrays"]
    host.forget(CALL)
    host.forget(5)
    with pytest.raises(NotReceived):
        execute(host, [shared])


def test_what_changed_is_handed_over() -> None:
    host = new_host()
    outcome = work(host, [job(0), job(1, stateless=[1]), job(2, **{"raise": [2]}), job(3)])
    assert [client for client, _ in outcome.changed] == [0, 3]
    assert work(host, [job(0, "evaluate")]).changed == [], "an evaluation has changed nothing"
    other = new_host()
    other.adopt(outcome.changed)
    contents = [[reply.content for reply in execute(h, [job(3)])] for h in (host, other)]
    assert contents[0] == contents[1]
    other.adopt([(0, b"")])  # a client that keeps nothing any more
    assert visits(other, 0, 1, 3) == [0, 0, 2]
    other.adopt([], anew=True)
    other.receive(CALL, Shared([]))
    assert visits(other, 0, 1, 3) == [0, 0, 0]


def test_replies_are_merged_in_the_host() -> None:
    host = new_host(shared=Shared([], apps.Summing))
    jobs = [job(client, **{"raise": [1]}) for client in range(4)]
    assert work(host, jobs[:2], last=False).replies == []
    merged, error = work(host, jobs[2:]).replies
    assert clients_in(merged) == 3
    assert (error.error.code, error.error.reason) == (FailureKind.RAISED, "RuntimeError: out of luck")
    single = [reply for reply in execute(new_host(), jobs) if reply.has_content()]
    expected = np.sum([reply.content["arrays"]["w"].numpy() for reply in single], axis=0)
    np.testing.assert_allclose(merged.content["arrays"]["w"].numpy(), expected, rtol=1e-6)
    host.forget(CALL)
    with pytest.raises(NotReceived):
        work(host, jobs)


@pytest.mark.parametrize("reduce", [False, True])
def test_a_stack_is_executed_at_once(reduce: bool) -> None:
    host, single = new_host("simulation_apps:train_stack"), new_host()
    jobs = [job(client) for client in (2, 0, 3)]
    for _ in range(2):
        if reduce:
            host.forget(CALL)
            host.receive(CALL, Shared([], apps.Summing))
        outcome = work(host, jobs)
        expected = execute(single, jobs)
        assert outcome.notes == [] and [client for client, _ in outcome.changed] == [2, 0, 3]
        if reduce:
            assert [clients_in(reply) for reply in outcome.replies] == [3]
        else:
            assert [reply.content["arrays"] for reply in outcome.replies] == [
                reply.content["arrays"] for reply in expected
            ]
    host.forget(CALL)
    host.receive(CALL, Shared([]))
    assert visits(host, 0) == [2]


@pytest.mark.parametrize("fault", ["raise", "nothing"])
def test_a_stack_that_fails_goes_one_by_one(fault: str) -> None:
    host, single = new_host("simulation_apps:train_stack"), new_host()
    jobs = [job(client, **{fault: [1]}) for client in range(3)]
    outcome = work(host, jobs)
    assert [reply.has_error() for reply in outcome.replies] == [False, True, False]
    assert len(outcome.notes) == 1 and "one by one where a stack of them fails" in outcome.notes[0]
    expected = work(single, jobs)
    assert outcome.changed == expected.changed
    assert outcome.replies[2].content == expected.replies[2].content


def test_a_state_that_has_no_wire_format_fails_its_client() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        context.state["config"] = ConfigRecord({"huge": 2**70})
        return Message(RecordDict(), reply_to=message)

    host = new_host()
    host._app = app
    reply = execute(host, [job(2)])[0]
    assert reply.error.code == FailureKind.RAISED and str(reply.error.reason).startswith("ValueError")


def test_a_client_cannot_change_the_run_config_of_the_next() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: object) -> Message:
        config = ConfigRecord({"colour": context.run_config["colour"]})  # type: ignore[attr-defined]
        context.run_config["colour"] = "gone"  # type: ignore[attr-defined]
        return Message(RecordDict({"config": config}), reply_to=message)

    host = new_host()
    host._app = app
    replies = execute(host, [job(0, "query"), job(0, "query")])
    assert [reply.content["config"]["colour"] for reply in replies] == ["green", "green"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("simulation_apps", "write it as 'module:attribute'"),
        (":app", "write it as 'module:attribute'"),
        ("no_such_module:app", "cannot be loaded: ModuleNotFoundError"),
        ("simulation_apps:nothing", "cannot be loaded: AttributeError"),
        ("simulation_apps:not_an_app", "is a int, not a flwr.clientapp.ClientApp"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_named(reference: str, message: str) -> None:
    with pytest.raises(FedMoEError, match=message) as caught:
        load_client_app(reference)
    assert str(caught.value).startswith(f"client app '{reference}'") and "\n" not in str(caught.value)


def test_an_app_object_that_does_not_arrive() -> None:
    with pytest.raises(FedMoEError, match="client app object cannot be loaded"):
        ClientHost(settings(pickled(apps.app)[:20])).load()
    unsendable = ClientApp()
    unsendable.__dict__["lock"] = threading.Lock()
    with pytest.raises(FedMoEError, match="client app object cannot be sent to the hosts: TypeError"):
        pickled(unsendable)


def test_the_package_does_not_import_torch() -> None:
    code = "import sys, simulation; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_clients_second_message_finds_the_state_of_its_first() -> None:
    host = new_host("simulation_apps:train_stack")
    replies = execute(host, [job(1), job(2), job(1)])
    assert [reply.content["metrics"]["visits"] for reply in replies] == [1, 1, 2]


@pytest.mark.parametrize(
    ("messages", "content_bytes", "size"),
    [
        (1, 1, 1),
        (8, 1, 1),
        (9, 1, 2),
        (100, 1, 13),
        (10_000, 1, CHUNK_MESSAGES),
        (10_000, CHUNK_BYTES // 3, 3),
        (10_000, CHUNK_BYTES * 3, 1),
    ],
)
def test_chunk_size(messages: int, content_bytes: int, size: int) -> None:
    assert chunk_size(messages, content_bytes) == size


@pytest.mark.parametrize(
    ("messages", "reply_bytes", "stacked", "size"),
    [
        (1, None, False, 1),
        (MERGED_MESSAGES, None, False, MERGED_MESSAGES),
        (MERGED_MESSAGES + 1, None, False, MERGED_MESSAGES // 2 + 1),
        (STACKED_MESSAGES, None, True, STACKED_MESSAGES),
        (302, None, True, 151),
        (302, 1, True, 151),
        (302, CHUNK_BYTES // 100, True, 76),
        (302, CHUNK_BYTES * 2, True, 1),
        (3, 0, False, 1),
    ],
)
def test_chunk_size_of_merged_replies_and_stacks(
    messages: int, reply_bytes: int | None, stacked: bool, size: int
) -> None:
    assert chunk_size(messages, reply_bytes, stacked) == size


def test_shared_records_are_those_of_several_contents() -> None:
    one, two, three = apps.start_arrays(), apps.start_arrays(), apps.start_arrays()
    config = ConfigRecord({"words": ["a"]})
    contents = [RecordDict({"a": one, "b": two, "c": config}), RecordDict({"c": one, "a": config}), RecordDict()]
    contents += [RecordDict({"a": three}), contents[2]]
    shared, travelling = split_shared(contents)
    assert [id(record) for record in shared] == [id(one)], "equal is not the same"
    assert len(travelling) == 4
    assert travelling[id(contents[0])] == {"a": 0, "b": two, "c": config}
    assert travelling[id(contents[1])] == {"c": 0, "a": config}


def test_clients_in_a_reply() -> None:
    begin_run()
    single = Message(RecordDict({"m": MetricRecord({"loss": 1.0})}), 2, "train")
    merged = Message(RecordDict({"m": MetricRecord({"loss": 1.0, "num-clients": 3})}), 2, "train")
    failed = error_reply(single, FailureKind.LOST, "because")
    assert [clients_in(reply) for reply in (single, merged, failed)] == [1, 3, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=9)), max_size=40))
def test_the_table_of_states_is_a_dictionary(steps: list[tuple[int, bytes]]) -> None:
    table, model = StateTable(0), dict[int, bytes]()
    for client, state in steps:
        table.put([(client, state)])
        model[client] = state
        assert list(table.items()) == sorted(model.items())
        assert table.get(client) == state and table.get(6) is None
    table.clear()
    assert list(table.items()) == [] and table.get(0) is None


def test_states_beyond_the_memory_are_in_a_file_that_stays_small_and_has_no_name() -> None:
    def files() -> list[str]:
        places = [os.path.realpath(place) for place in Path("/proc/self/fd").iterdir()]
        return [place for place in places if "etilqs" in place]  # as SQLite names them

    before = files()
    table, small = StateTable(1 << 20), StateTable(1 << 30)
    states = {client: bytes([client]) * 100_000 for client in range(40)}
    small.put(states.items())
    assert files() == before
    for _ in range(20):
        table.put(states.items())
    assert dict(table.items()) == states
    pages, size = (table._query(f"PRAGMA {name}")[0] for name in ("page_count", "page_size"))
    assert 4_000_000 < pages * size < 8_000_000, "what is out of date makes room"
    (place,) = set(files()) - set(before)
    assert place.endswith(" (deleted)")


def test_a_full_disk() -> None:
    table = StateTable(0)
    table._query("PRAGMA max_page_count = 4")
    with pytest.raises(FedMoEError, match="clients' state does not fit on the disk .*full.*TMPDIR"):
        table.put([(1, bytes(1_000_000))])
