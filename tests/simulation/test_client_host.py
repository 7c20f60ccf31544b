"""The host without Ray: copies, shared records, state, deadlines; and the loading of apps."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import simulation_apps as apps
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from errors import FedMoEError
from simulation.client_host import ClientHost, Job, load_client_app
from simulation.flower_runtime import begin_run, copy_records, number_message, records_from_bytes, records_to_bytes


def new_host() -> ClientHost:
    host = ClientHost("simulation_apps:app", 4, 1, {"colour": "green"})
    host.load()
    return host


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
    host.receive(1, apps.start_arrays())
    plain = job(0)
    shared = Job(0, plain.metadata, {"arrays": 1, "config": plain.content["config"]})
    spoil = job(1, spoil=[1]).content["config"]
    first, second, third = host.execute([plain, Job(1, plain.metadata, {"arrays": 1, "config": spoil}), shared], None)
    assert first is not None and second is not None and third is not None
    assert second.has_content() and first.content["arrays"] == third.content["arrays"]
    host.forget([1, 5])
    with pytest.raises(KeyError):
        host.execute([shared], None)


def test_only_clients_with_state_are_kept(tmp_path: Path) -> None:
    host = new_host()
    host.execute([job(0), job(1, stateless=[1]), job(2, **{"raise": [2]})], None)
    path = str(tmp_path / "file")
    assert host.save(path) == 1
    assert host.restore([path], 1, 2) == 0
    assert host.restore([Path(path).read_bytes()], 0, 2) == 1
    replies = host.execute([job(0, "evaluate"), job(1, "evaluate")], None)
    assert [reply.content["config"]["visits"] for reply in replies if reply is not None] == [1, 0]


def test_nothing_begins_after_the_deadline() -> None:
    assert new_host().execute([job(0)], time.time() - 1) == [None]


def test_a_client_cannot_change_the_run_config_of_the_next() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: object) -> Message:
        config = ConfigRecord({"colour": context.run_config["colour"]})  # type: ignore[attr-defined]
        context.run_config["colour"] = "gone"  # type: ignore[attr-defined]
        return Message(RecordDict({"config": config}), reply_to=message)

    host = ClientHost("simulation_apps:app", 4, 1, {"colour": "green"})
    host._app = app
    replies = host.execute([job(0, "query"), job(0, "query")], None)
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
        ClientHost(pickle.dumps(apps.app)[:20], 1, 1, {}).load()


def test_the_package_does_not_import_torch() -> None:
    code = "import sys, simulation; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
