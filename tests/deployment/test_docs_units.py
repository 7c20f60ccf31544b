"""The systemd units, the container file, all commands of docs/deployment.md and the tutorial: parsed, units started."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from real_processes import wait_for
from site_pages import deployed_commands

import fedmoe_client.__main__ as client_door
import fedmoe_server.__main__ as server_door
from fedmoe.deployment.ports import listens, parse_address
from fedmoe.loading import load_settings
from fedmoe_client.device.client_folder import ClientFolder

TEXT = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
DOORS = {"fedmoe_server": server_door, "fedmoe_client": client_door}


def section(title: str) -> str:
    """Return the indented lines below a heading, up to the next one; a line that ends in a backslash joined."""
    text = re.split(r"^#+ ", TEXT.partition(f"{title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return "\n".join(lines).replace("\\\n", " ")


def understood(words: list[str]) -> None:
    """Give the words after ``python -m`` to what would read them: a mistake ends the program (SystemExit)."""
    door, command = DOORS[words[0]], words[1]
    given = door.parser().parse_args(words[1 : words.index("--") if "--" in words else None])
    if command == "catalogue" or (command == "run" and given.resume is None):
        load_settings(given.words)


def commands(text: str) -> list[list[str]]:
    """Return the words after ``python -m`` of every command of ours, comments left out."""
    found = re.findall(r"(?:python -m |\bfedmoe )(fedmoe_(?:server|client) .*)", text)
    return [shlex.split(re.sub(r"; done$", "", line), comments=True) for line in found]


def units() -> dict[str, str]:
    """Return the text of each unit; the client's is the server's with another line."""
    server, _, rest = section("## systemd").partition("# /etc/systemd/system/fedmoe-client.service")
    (line,) = re.findall(r"^ExecStart=.*$", rest, re.MULTILINE)
    client = re.sub(r"^ExecStart=.*$", line, server, flags=re.MULTILINE).replace("FedMoE server", "FedMoE client")
    return {"fedmoe-server.service": server, "fedmoe-client.service": client}


def service(name: str) -> configparser.SectionProxy:
    """Return the ``[Service]`` of a unit."""
    unit = configparser.ConfigParser(interpolation=None, delimiters="=", comment_prefixes="#")
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string(units()[name])
    return unit["Service"]


@pytest.mark.parametrize("name", units())
def test_a_unit_starts_what_there_is(name: str) -> None:
    program, option, *words = shlex.split(service(name)["ExecStart"])
    assert program.startswith("/")
    assert option == "-m"
    assert words[:2] == [name.removesuffix(".service").replace("-", "_"), "up"]
    understood(words)
    assert "--foreground" in words
    assert service(name)["Restart"] == "always"


@contextmanager
def started(name: str, federation: Any, places: dict[str, object], *more: str) -> Iterator[None]:
    """Start and stop a unit as systemd does with ``KillMode=mixed``: SIGTERM to its first process, and a time limit.

    places: what to put for paths and names of the docs; more: further words.
    """
    command = service(name)["ExecStart"].replace("/opt/fedmoe/bin/python", sys.executable)
    for old, new in places.items():
        assert old in command
        command = command.replace(old, str(new))
    assert service(name)["KillMode"] == "mixed"
    process = subprocess.Popen([*shlex.split(command), *more], cwd=federation.root, env=federation.environment())
    try:
        yield
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=float(service(name)["TimeoutStopSec"]))
    finally:
        process.kill()


@pytest.mark.faults
def test_units_are_started_and_stopped_and_leave_nothing(federation: Any) -> None:
    places = {"/var/lib/fedmoe/server": federation.server_dir}
    words = ("--address", federation.address, "--control", federation.control)
    with started("fedmoe-server.service", federation, places, *words):
        wait_for(lambda: all(listens(*parse_address(word)) for word in words[1::2]), 60, "the server's unit")
        federation.write_histories()
        federation.server("catalogue", "quick", "--out", federation.root / "catalogue")
        federation.client(0, "enrol")
        federation.server("admit", federation.client_dir(0) / "client.pub")
        assert "connected to" in federation.client_up(0)  # once by hand, so that the authority is kept
        federation.client(0, "down")
        folder = ClientFolder(federation.client_dir(0))
        read = folder.node_log.stat().st_size
        places = {
            "/var/lib/fedmoe/client": folder.path,
            "fed.example.org:9092": federation.address,
            "/var/lib/fedmoe/history.txt": federation.history(0),
            "/var/lib/fedmoe/catalogue": federation.root / "catalogue",
        }
        with started("fedmoe-client.service", federation, places):
            wait_for(lambda: folder.node_id(read) is not None, 60, "the client's unit")
    assert federation.processes() == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    for name, text in units().items():
        (tmp_path / name).write_text(text.replace("/opt/fedmoe/bin/python", sys.executable), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "fedmoe" in line]
    assert said == []


def test_the_container_file_and_its_commands() -> None:
    text = section("## Container")
    steps = dict(re.findall(r"^(FROM|ENTRYPOINT|VOLUME|USER) (.*)$", text, re.MULTILINE))
    assert steps["ENTRYPOINT"] == '["python", "-m"]'
    assert steps["FROM"].startswith("python:3.11")
    found = commands(text)
    assert len(found) == text.count("podman") - 1  # but for podman build
    for words in found:
        understood(words)
        for path in (word for word in words if word.startswith("/")):
            assert path.startswith(steps["VOLUME"])


def test_every_command_of_the_page_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    found = commands(section("## Ten minutes") + "\n" + deployed_commands().replace("\\\n", " "))
    assert {words[1] for words in found} >= {"up", "enrol", "admit", "catalogue", "run", "recommend", "export", "down"}
    for words in found:
        understood(words)
    for words in (["fedmoe_client", "recommend", "--tip", "10"], ["fedmoe_client", "up", "--sever", "a:1"]):
        with pytest.raises(SystemExit):
            understood(words)
