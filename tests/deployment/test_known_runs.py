"""How a run is doing, from its log's lock and its folder alone; and what an operator is shown of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe.errors import FedMoEError
from fedmoe_server.deploy import operate, submission
from fedmoe_server.deploy.deployed import AdmittedClient, held_log, progress_log
from fedmoe_server.deploy.known_runs import KnownRun, State, find_run, known_runs, note_end, note_run, state_of
from fedmoe_server.deploy.server_folder import ServerFolder
from fedmoe_server.deploy.status import clients_of, run_status_of, run_table
from fedmoe_server.deploy.submission import RunFailed, follow
from fedmoe_server.rounds.record import Failure, RoundRecord


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    folder = ServerFolder(tmp_path / "server")
    folder.make()
    return folder


def new_run(server: ServerFolder, number: str = "7", rounds: int = 0) -> KnownRun:
    place = server.path.parent / f"run-{number}"
    (place / "checkpoints" / "round-000002").mkdir(parents=True)
    (place / "settings.yaml").write_text("federation: {num_rounds: 10}\n")
    lines = [json.dumps(RoundRecord(n + 1, clients=3, bytes_down=10, seconds=4.0).to_json()) for n in range(rounds)]
    (place / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return note_run(server, number, place)


def log_of(server: ServerFolder, run: KnownRun) -> Path:
    return progress_log(server.clients, run.path)


def test_a_run_waits_runs_and_ends(server: ServerFolder) -> None:
    run = new_run(server, rounds=2)
    assert state_of(server, run) is State.WAITING
    with held_log(log_of(server, run)):
        assert state_of(server, run) is State.RUNNING
        assert run_status_of(server, run).seconds_left == 8 * 4.0
        with pytest.raises(FedMoEError, match="still running: follow it"):
            submission_of(server, run)
    assert state_of(server, run) is State.KILLED
    assert run_status_of(server, run).seconds_left is None
    for status, state in (("failed", State.FAILED), ("completed", State.COMPLETED)):
        (run.path / "result.json").write_text(json.dumps({"status": status}))
        assert state_of(server, run) is state
    (run.path / "result.json").unlink()
    note_end(server, run, State.STOPPED)
    assert state_of(server, run) is State.STOPPED
    assert run_table(server)[0].split()[3:5] == ["stopped", "2/10"]


def submission_of(server: ServerFolder, run: KnownRun) -> Any:
    from fedmoe.loading import load_settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission, "require_up", lambda server: None)
        return submission.submit(server, load_settings(["quick"])[0], run.path, [], print)


def test_a_run_that_never_began_and_one_that_was_gone_on_with(server: ServerFolder) -> None:
    run = new_run(server)
    note_end(server, run, State.FAILED)
    assert state_of(server, run) is State.FAILED
    later = note_run(server, "8", run.path)
    assert state_of(server, run) is State.RESUMED
    assert state_of(server, later) is State.WAITING
    assert [each.number for each in known_runs(server)] == ["7", "8"]
    for word in (None, "8", run.path.name, str(run.path)):
        assert find_run(server, word).number == "8"
    with pytest.raises(FedMoEError, match="knows no run 'x': 'python -m fedmoe_server runs' lists them"):
        find_run(server, "x")


def test_following_shows_all_lines_and_says_how_to_go_on(server: ServerFolder) -> None:
    run, shown = new_run(server, rounds=2), []
    with held_log(log_of(server, run)) as log:
        log.write("one\ntwo\n")
    with pytest.raises(RunFailed, match=r"run 7 was killed, or its server was; go on .* run --resume") as killed:
        follow(server, run, shown.append)
    assert killed.value.killed and shown == ["one", "two"]
    (run.path / "result.json").write_text(json.dumps({"status": "failed", "error": "nobody"}))
    with pytest.raises(RunFailed, match="run 7 failed: nobody; go on") as failed:
        follow(server, run, shown.append)
    assert not failed.value.killed
    (run.path / "result.json").write_text(json.dumps({"status": "completed"}))
    assert follow(server, run, shown.append).status == "completed"


@pytest.mark.parametrize("progress", [True, False])
def test_a_killed_run_is_gone_on_with_as_long_as_it_gets_further(
    server: ServerFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], progress: bool
) -> None:
    """Ten kills with a round between them do no harm; without one, three in a row are enough."""
    runs = [new_run(server, str(number), rounds=number if progress else 1) for number in range(1, 12)]
    following = iter(runs[1:])

    def end(server: ServerFolder, run: KnownRun, show: Any) -> None:
        if run is not runs[-1]:
            raise RunFailed("killed", killed=True)

    monkeypatch.setattr(operate, "follow_to_its_end", end)
    assert operate._followed(server, runs[0], lambda killed: next(following)) == (0 if progress else 1)
    gone_on = capsys.readouterr().out.count("goes on")
    assert gone_on == (10 if progress else operate.MOST_RESUMES)


def test_who_is_online_and_who_failed(server: ServerFolder) -> None:
    for client in range(3):
        server.admit(AdmittedClient(client, 100 + client, str(client)))
    nodes = [
        {"node-id": "100", "status": "online", "online-at": "2026-01-01 10:00:00Z", "offline-at": "N/A"},
        {"node-id": "101", "status": "offline", "online-at": "N/A", "offline-at": "2026-01-01 11:00:00Z"},
    ]
    failure = Failure(1, 101, "train", "no reply in time")
    found = clients_of(server, nodes, [RoundRecord(4, failed=(failure,))])
    assert [(each.client, each.online, each.since) for each in found] == [
        (0, True, "2026-01-01 10:00:00Z"),
        (1, False, "2026-01-01 11:00:00Z"),
        (2, False, ""),
    ]
    assert found[1].failures == ((4, failure),) and not found[0].failures
