"""Log lines that say which run and which client they are about."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmoe.deployment.logs import PACKAGES, log_about


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    yield
    for name in PACKAGES:
        logging.getLogger(name).handlers = []


def fail(name: str) -> None:
    try:
        raise ValueError("the disk\nis gone")
    except ValueError:
        logging.getLogger(name).exception("a message failed")


def test_lines_are_added_to_a_file(tmp_path: Path) -> None:
    for run in (1, 2):
        log_about(file=tmp_path / "x.log", run=run)
        logging.getLogger("fedmoe_server").info("round 1")
    lines = (tmp_path / "x.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["INFO run=1 round 1", "INFO run=2 round 1"]


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    log_about(run=12, client=2**61)
    logging.getLogger("fedmoe_client.app").warning("run %s is plain", 12)
    fail("fedmoe_client.device.resident")
    log_about(run=13, client=None)  # the next message is another run's
    logging.getLogger("fedmoe_server.report.progress").info("round 3/5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split(" ", 1)[1] == f"WARNING run=12 client={2**61} run 12 is plain"
    assert lines[0][10] == "T" and lines[0].split()[0].endswith("Z")
    assert lines[1].endswith("a message failed") and lines[2].startswith("Traceback")
    assert lines[-1].endswith("INFO run=13 round 3/5")


def test_lines_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    log_about(as_json=True, run="12", client=3)
    fail("fedmoe_client.device.resident")
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert said["time"].endswith("Z") and said["trace"].endswith("is gone")
    assert {key: said[key] for key in ("level", "run", "client", "logger", "message")} == {
        "level": "ERROR",
        "run": "12",
        "client": "3",
        "logger": "fedmoe_client.device.resident",
        "message": "a message failed",
    }
