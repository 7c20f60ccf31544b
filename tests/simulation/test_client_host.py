"""The host without Ray: copies, shared records, state, deadlines; and the loading of apps."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simulation_apps as apps
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmoe.errors import FedMoEError
from simulation.client_call import load_client_app
from simulation.flower_runtime import begin_run, copy_records, number_message, records_from_bytes, records_to_bytes
from simulation.ray.client_host import ClientHost
from simulation.ray.host_work import HostSettings, Job, Work
from simulation.reduction import clients_in


def settings(app: str | bytes = "simulation_apps:app", stacked: str | None = None) -> HostSettings:
    return HostSettings(app, 4, 1, {"colour": "green"}, stacked)


def new_host(stacked: str | None = None) -> ClientHost:
    host = ClientHost(settings(stacked=stacked))
    host.load()
    return host


def execute(host: ClientHost, jobs: list[Job], deadline: float | None = None) -> list[Message | None]:
    return host.execute(Work(jobs, deadline)).replies


def job(client_id: int, kind: str = "train", **config: object) -> Job:
    begin_run()
    request = apps.requests([client_id + 2], kind, **config)[0]
    number_message(request, f"m{client_id}")
    return Job(client_id, request.metadata, dict(request.content))


def records() -> RecordDict:
    return RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.arange(3.0)), "e": Array(np.zeros((0, 2), np.float16))}),
            "config": ConfigRecord({"names": ["a", "b"], "flag": True, "bytes": b"\x00", "large": 2**63}),
            "metrics": MetricRecord({"loss": 0.5, "counts": [1, 2]}),
        }
    )


def test_a_copy_shares_nothing_that_can_be_changed() -> None:
    original, copy = records(), copy_records(records())
    copy = copy_records(original)
    assert copy == original and list(copy) == list(original)
    assert copy["arrays"]["w"].data is original["arrays"]["w"].data, "the bytes themselves are not copied"
    assert original["arrays"].object_id == copy["arrays"].object_id
    copy["arrays"]["w"].data = b""
    copy["arrays"]["new"] = Array(np.zeros(1))
    copy["config"]["names"].append("c")
    copy["metrics"]["counts"][0] = 7
    del copy["metrics"]["loss"]
    assert original == records()


def test_records_survive_as_bytes() -> None:
    back = records_from_bytes(records_to_bytes(records()))
    assert back == records() and [list(back[name]) for name in back] == [list(records()[name]) for name in back]


def test_shared_records_until_forgotten() -> None:
    host = new_host()
    host.receive({1: apps.start_arrays()})
    plain = job(0)
    shared = Job(0, plain.metadata, {"arrays": 1, "config": plain.content["config"]})
    spoil = job(1, spoil=[1]).content["config"]
    first, second, third = execute(host, [plain, Job(1, plain.metadata, {"arrays": 1, "config": spoil}), shared])
    assert first is not None and second is not None and third is not None
    assert second.has_content() and first.content["arrays"] == third.content["arrays"]
    host.forget([1, 5])
    with pytest.raises(KeyError):
        execute(host, [shared])


def test_only_clients_with_state_are_kept(tmp_path: Path) -> None:
    host = new_host()
    execute(host, [job(0), job(1, stateless=[1]), job(2, **{"raise": [2]})])
    path = str(tmp_path / "file")
    assert host.save(path) == 1
    assert host.restore([path], np.arange(4) % 2, 1) == 0
    assert host.restore([path], np.arange(4) % 2, 0) == 1
    replies = execute(host, [job(0, "evaluate"), job(1, "evaluate")])
    assert [reply.content["config"]["visits"] for reply in replies if reply is not None] == [1, 0]


def test_what_changed_is_handed_over() -> None:
    host = new_host()
    outcome = host.execute(Work([job(0), job(1, stateless=[1]), job(2, **{"raise": [2]}), job(3)]))
    assert [client for client, _ in outcome.changed] == [0, 3]
    assert host.execute(Work([job(0, "evaluate")])).changed == [], "an evaluation has changed nothing"
    other = new_host()
    assert other.adopt(outcome.changed) == 2
    contents = [[reply.content for reply in execute(h, [job(3)]) if reply] for h in (host, other)]
    assert contents[0] == contents[1]
    assert other.adopt([(0, b"")]) == 1, "a client that keeps nothing any more"
    other.clear()
    assert other.adopt([]) == 0


@pytest.mark.parametrize("stacked", [None, "simulation_apps:train_stack"])
def test_a_guest_brings_its_state_and_leaves_with_it(stacked: str | None) -> None:
    home, away = new_host(), new_host(stacked)
    execute(home, [job(0)])
    state, nothing = home.states([0, 1])
    assert state and nothing == b""
    outcome = away.execute(Work([replace(job(0), state=state), replace(job(1), state=nothing)]))
    assert away.states([0, 1]) == [b"", b""], "it keeps nothing of them"
    home.adopt(outcome.changed)
    replies = execute(home, [job(client, "evaluate") for client in (0, 1)])
    assert [reply.content["config"]["visits"] for reply in replies if reply is not None] == [2, 1]


def test_replies_are_merged_in_the_host() -> None:
    host = new_host()
    host.receive({7: apps.Summing})
    jobs = [job(client, **{"raise": [1]}) for client in range(4)]
    assert host.execute(Work(jobs[:2], reducer=7)).replies == []
    outcome = host.execute(Work(jobs[2:], reducer=7, last=True))
    merged, error = outcome.replies
    assert merged is not None and error is not None and clients_in(merged) == 3
    assert error.error.reason == "client 1: train: RuntimeError: out of luck"
    single = [reply for reply in execute(new_host(), jobs) if reply is not None and reply.has_content()]
    expected = np.sum([reply.content["arrays"]["w"].numpy() for reply in single], axis=0)
    np.testing.assert_allclose(merged.content["arrays"]["w"].numpy(), expected, rtol=1e-6)
    host.forget([7])
    with pytest.raises(KeyError):
        host.execute(Work(jobs, reducer=7))


@pytest.mark.parametrize("reduce", [False, True])
def test_a_stack_is_executed_at_once(reduce: bool) -> None:
    host, single = new_host("simulation_apps:train_stack"), new_host()
    jobs = [job(client) for client in (2, 0, 3)]
    host.receive({7: apps.Summing})
    for _ in range(2):
        outcome = host.execute(Work(jobs, reducer=7 if reduce else None, last=True))
        expected = [reply for reply in execute(single, jobs) if reply is not None]
        assert outcome.notes == [] and [client for client, _ in outcome.changed] == [2, 0, 3]
        if reduce:
            host.forget([7])
            host.receive({7: apps.Summing})
            assert outcome.replies[0] is not None and clients_in(outcome.replies[0]) == 3
        else:
            assert [reply.content["arrays"] for reply in outcome.replies if reply] == [
                reply.content["arrays"] for reply in expected
            ]
    assert execute(host, [job(0, "evaluate")])[0].content["config"]["visits"] == 2  # type: ignore[union-attr]
    assert execute(host, jobs, time.time() - 1) == [None] * 3


@pytest.mark.parametrize("fault", ["raise", "nothing"])
def test_a_stack_that_fails_goes_one_by_one(fault: str) -> None:
    host, single = new_host("simulation_apps:train_stack"), new_host()
    jobs = [job(client, **{fault: [1]}) for client in range(3)]
    outcome = host.execute(Work(jobs))
    assert [reply.has_error() for reply in outcome.replies if reply] == [False, True, False]
    assert len(outcome.notes) == 1 and "one by one where a stack of them fails" in outcome.notes[0]
    expected = single.execute(Work(jobs))
    assert outcome.changed == expected.changed
    assert outcome.replies[2].content == expected.replies[2].content  # type: ignore[union-attr]


def test_a_state_that_has_no_wire_format_fails_its_client() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        context.state["config"] = ConfigRecord({"huge": 2**70})
        return Message(RecordDict(), reply_to=message)

    host = new_host()
    host._app = app
    reply = execute(host, [job(2)])[0]
    assert reply is not None and str(reply.error.reason).startswith("client 2: train: ValueError")


def test_nothing_begins_after_the_deadline() -> None:
    assert execute(new_host(), [job(0)], time.time() - 1) == [None]


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
    assert [reply.content["config"]["colour"] for reply in replies if reply is not None] == ["green", "green"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("simulation_apps", "write it as 'module:attribute'"),
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
    with pytest.raises(FedMoEError, match="cannot be sent to the clients' hosts"):
        ClientHost(settings(pickle.dumps(apps.app)[:20])).load()


def test_the_package_does_not_import_torch() -> None:
    code = "import sys, simulation; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_clients_second_message_finds_the_state_of_its_first() -> None:
    host = new_host("simulation_apps:train_stack")
    replies = execute(host, [job(1), job(2), job(1)])
    assert [reply.content["metrics"]["visits"] for reply in replies if reply is not None] == [1, 1, 2]
