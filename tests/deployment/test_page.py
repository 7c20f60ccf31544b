"""The page of the runs and ``/metrics``: what is shown, who may look, and that the dashboard asks for what there is."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from real_processes import Federation, wait_for

from fedmoe.deployment.ports import free_port, listens, parse_address
from fedmoe.errors import FailureKind, FedMoEError
from fedmoe.files import read_json, write_json
from fedmoe_server.deploy.deployed import AdmittedClient, held_log, progress_log
from fedmoe_server.deploy.known_runs import note_run
from fedmoe_server.deploy.server_folder import Addresses, ServerFolder
from fedmoe_server.monitor import overview
from fedmoe_server.monitor.exported import exposition
from fedmoe_server.monitor.overview import Watcher, described
from fedmoe_server.monitor.page import serve
from fedmoe_server.rounds.record import Failure, RoundRecord

ROOT = Path(__file__).parents[2]
LOUD = "</script><script>alert(1)</script>"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerFolder]:
    """A server whose run does its third round of ten; of three clients one is missing, and one has failed."""
    folder = ServerFolder(tmp_path / "server")
    folder.make()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        write_json(folder.path / "server.json", vars(Addresses(address, address)))
        write_json(folder.supervisor, {"programs": {"superlink": {"process": None, "restarts": 2}}})
        for client in range(3):
            folder.admit(AdmittedClient(client + 2**60, 100 + client, str(client)))
        nodes = [{"node-id": "100", "status": "online", "online-at": "2026-01-01 10:00:00Z"}]
        nodes += [{"node-id": "101", "status": "offline", "offline-at": "2026-01-01 11:00:00Z"}]
        monkeypatch.setattr(overview, "nodes_of", lambda server: nodes)
        yield folder


def new_run(server: ServerFolder, name: str = "one", rounds: int = 2) -> Path:
    place = server.path.parent / name
    place.mkdir()
    (place / "settings.yaml").write_text("federation: {num_rounds: 10}\n")
    failure = Failure(2**60 + 1, 101, "train", f"OSError: {LOUD}", FailureKind.LOST)
    lines = [
        RoundRecord(
            number + 1,
            clients=3,
            train={"loss": 5.0 - number, "gate": 0.3, "router-text": 0.4, "router-visual": 0.6},
            validation={"hr@10": 0.1, "ndcg@10": 0.05, "global-hr@10": 0.09},
            privacy={"epsilon": 1.5 + number},
            failed=(failure,) if number else (),
            bytes_down=100,
            bytes_up=10,
            seconds=4.0,
            phases={"waiting": 1.0, "training": 2.0, "evaluation": 1.0},
        )
        for number in range(rounds)
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines))
    note_run(server, str(2**62 + len(list(server.submitted.glob("*"))) if server.submitted.exists() else 2**62), place)
    return place


def looked(server: ServerFolder) -> overview.Overview:
    watcher = Watcher(server)
    watcher.look()  # nobody waits for the server's word on its nodes
    for _ in range(50):
        if (found := watcher.look()).asked:
            return found
        time.sleep(0.02)
    raise AssertionError("the server's nodes did not become known")


def samples(text: bytes) -> dict[tuple[str, frozenset[Any]], float]:
    families = text_string_to_metric_families(text.decode())
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def test_metrics_say_what_the_run_folder_says(server: ServerFolder) -> None:
    place = new_run(server)
    with held_log(progress_log(server.clients, place)):
        found = samples(exposition(looked(server)))

    def value(name: str, **labels: str) -> float | None:
        return found.get((f"fedmoe_{name}", frozenset(labels.items())))

    assert (value("server_up"), value("clients_admitted"), value("clients_online")) == (1, 3, 1)
    assert (value("part_up", part="superlink"), value("part_restarts_total", part="superlink")) == (0, 2)
    assert (value("rounds_done", run="one"), value("rounds_planned", run="one")) == (2, 10)
    assert (value("seconds_left", run="one"), value("round_seconds", run="one")) == (32, 4)
    assert (value("replies_total", run="one"), value("failures_total", run="one", kind="lost")) == (5, 1)
    assert value("failures_total", run="one", kind="no-reply") == 0
    assert (value("phase_seconds_total", run="one", phase="training"), value("epsilon", run="one")) == (4, 2.5)
    assert (value("bytes_total", run="one", direction="down"), value("round_clients", run="one")) == (200, 3)
    assert value("model", run="one", part="validation", metric="hr@10") == 0.1
    assert value("model", run="one", part="train", metric="router-text") == 0.4
    assert value("run_state", run="one", state="running") == 1 and value("run_state", run="one", state="failed") == 0


def test_the_dashboard_asks_for_metrics_that_are_exported(server: ServerFolder) -> None:
    with held_log(progress_log(server.clients, new_run(server))):
        exported = {name for name, _ in samples(exposition(looked(server)))}
    dashboard = (ROOT / "docs/grafana-dashboard.json").read_text()
    asked = set(re.findall(r"fedmoe_[a-z_]+", json.dumps(json.loads(dashboard)["panels"])))
    assert asked == {name for name in exported if not name.endswith("_created")}
    labels = {label for name, found in samples(exposition(looked(server))) for label, _ in found}
    assert set(re.findall(r"\{\{(\w+)\}\}", dashboard)) <= labels


def test_the_page_shows_runs_and_who_is_missing_and_nothing_twice(server: ServerFolder) -> None:
    first = new_run(server, "first")
    (first / "result.json").write_text(json.dumps({"status": "failed", "error": "nobody came"}))
    progress_log(server.clients, first).touch()
    new_run(server, "second", rounds=0)
    shown = described(looked(server), None)
    assert [(run["name"], run["state"], run["error"]) for run in shown["runs"]] == [
        ("second", "waiting", None),
        ("first", "failed", "nobody came"),
    ]
    assert shown["chosen"]["number"] == shown["runs"][0]["number"] and shown["chosen"]["plots"] == []
    states = [(each["client"], each["online"], each["since"]) for each in shown["clients"]]
    assert states[:2] == [(str(2**60), True, "2026-01-01 10:00:00Z"), (str(2**60 + 1), False, "2026-01-01 11:00:00Z")]
    chosen = described(looked(server), shown["runs"][1]["number"])["chosen"]
    assert [plot["title"] for plot in chosen["plots"]] == [
        "Training loss", "HR@10", "NDCG@10", "Gate", "Router", "Seconds a round",
    ]  # fmt: skip
    assert chosen["plots"][0]["lines"] == [{"name": "loss", "x": [1, 2], "y": [5.0, 4.0]}]
    assert chosen["failures"][0]["kind"] == "lost" and chosen["failures"][0]["client"] == str(2**60 + 1)


@pytest.fixture
def port(server: ServerFolder) -> int:
    new_run(server)
    number, ready = free_port(), threading.Event()
    threading.Thread(target=serve, args=(server, f"127.0.0.1:{number}", lambda _: ready.set()), daemon=True).start()
    assert ready.wait(5)
    return number


def asked(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, Mapping[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def test_the_page_is_read_by_this_machine_and_by_no_other_page(server: ServerFolder, port: int) -> None:
    own = f"http://127.0.0.1:{port}"
    status, headers, page = asked(port, "/", Sec_Fetch_Site="none")
    assert status == 200 and page.startswith("<!doctype html>")
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/2000/svg)|innerHTML", page)  # nothing from elsewhere
    assert "script-src 'sha256-" in headers["Content-Security-Policy"] and headers["X-Frame-Options"] == "DENY"
    assert "Access-Control-Allow-Origin" not in headers
    assert asked(port, "/data", Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
    assert asked(port, "/metrics", Host=f"localhost:{port}")[0] == 200
    for foreign in (
        {"Host": f"fed.example.org:{port}"},  # a name that somebody has made mean 127.0.0.1
        {"Origin": "http://fed.example.org"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": ""},
        {"Host": "["},
    ):
        for path in ("/", "/data", "/metrics"):
            assert asked(port, path, **foreign)[0] == 403, foreign
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert asked(port, "/data", method)[0] == 501
    for path in ("/../server.json", "/secrets/control", "/etc/passwd", "/data/x"):
        assert asked(port, path)[0] == 404
    told = asked(port, "/data")[2] + asked(port, "/metrics")[2]
    assert LOUD in told and str(server.path) not in told  # text is text, as the page has it; no path


def test_the_page_is_refused_where_others_could_see_it(server: ServerFolder, port: int) -> None:
    for address in ("0.0.0.0:9093", "192.168.1.2:9093", "[::]:9093"):
        with pytest.raises(FedMoEError, match=r"--address .*: the page is for this machine alone, .*ssh -L 9093"):
            serve(server, address, print)
    with pytest.raises(FedMoEError, match="cannot be used"):
        serve(server, f"127.0.0.1:{port}", print)
    with pytest.raises(FedMoEError, match="there is no server in"):
        serve(ServerFolder(server.path / "none"), "127.0.0.1:9093", print)


def test_a_damaged_file_is_said_and_the_page_goes_on(server: ServerFolder, port: int) -> None:
    file = server.path.parent / "one" / "metrics.jsonl"
    whole = file.read_text()
    file.write_text("nonsense\n" + whole)
    status, _, said = asked(port, "/data")
    assert status == 500 and "line 1, is not JSON" in said
    file.write_text(whole)
    assert asked(port, "/data")[0] == 200


@pytest.mark.deployment
def test_up_keeps_the_page_running_and_down_takes_it_away(federation: Federation) -> None:
    page = f"127.0.0.1:{free_port()}"
    up = ("up", "--address", federation.address, "--control", federation.control, "--page")
    assert "the page is for this machine alone" in federation.server(*up, "0.0.0.0:9093", status=2)
    federation.server(*up, page)
    number = parse_address(page)[1]
    wait_for(lambda: listens("127.0.0.1", number), 60, "the page")

    def whole() -> bool:
        shown = json.loads(asked(number, "/data")[2])
        return shown["up"] and [part["alive"] for part in shown["parts"]] == [True, True, True]

    wait_for(whole, 60, "all parts on the page")
    assert "fedmoe_server_up 1.0" in asked(number, "/metrics")[2]
    program = read_json(federation.server_dir / "supervisor.json")["programs"]["page"]["process"]
    os.kill(program, signal.SIGKILL)
    wait_for(lambda: not listens("127.0.0.1", number), 10, "its end")
    wait_for(lambda: listens("127.0.0.1", number), 60, "the page, started again")
    assert "page runs, started again 1 times" in federation.server("status")
    federation.server("down")
    assert not listens("127.0.0.1", number)
