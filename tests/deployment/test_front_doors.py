"""The commands without any server: what they refuse, in one line, and what they hand to Flower's programs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import parse_config_args

import fedmoe_client.__main__ as client_door
import fedmoe_server.__main__ as server_door
from fedmoe.deployment.front_door import main
from fedmoe.deployment.keys import make_key_pair
from fedmoe.errors import FedMoEError
from fedmoe.files import write_json
from fedmoe_client.device.client_folder import ClientFolder, node_config, supernode_command
from fedmoe_server.deploy.bundle import RUN_CONFIG, write_bundle
from fedmoe_server.deploy.certificates import Certificates
from fedmoe_server.deploy.deployed import AdmittedClient
from fedmoe_server.deploy.server_folder import Addresses, ServerFolder, superlink_command

ROOT = Path(__file__).parents[2]


def server(*words: object) -> int:
    return main(server_door.parser(), server_door.COMMANDS, [str(word) for word in words])


def client(*words: object) -> int:
    return main(client_door.parser(), client_door.COMMANDS, [str(word) for word in words])


def test_mistakes_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--dir", tmp_path / "new")
    enrolled = ("--dir", tmp_path / "client")
    assert client("enrol", "--client-id", 3, *enrolled) == 0
    (tmp_path / "h.txt").write_text("1\n")
    history = ("--history", tmp_path / "h.txt")
    capsys.readouterr()
    for door, words, complaint in [
        (server, ("down", *here), "there is no server in"),
        (server, ("run", "quick", *here), "there is no server in"),
        (server, ("admit", tmp_path / "x.pub", *here), "there is no server in"),
        (server, ("up", "--address", "nowhere", *here), "write HOST:PORT"),
        (server, ("up", "--ca", tmp_path / "h.txt", "--foreground", *here), "needs all of --ca"),
        (client, ("enrol", "--client-id", -1, *here), "--client-id -1"),
        (client, ("up", "--server", "a:1", *history, *here), "has no key"),
        (client, ("up", "--server", "a", *history, *enrolled), "write HOST:PORT"),
        (client, ("up", "--server", "a:1", *enrolled), "give either --history"),
        (client, ("up", "--server", "a:1", *history, *enrolled), "has no ca.crt"),
        (
            client,
            ("up", "--server", "a:1", *history, "--ca", tmp_path / "h.txt", *enrolled),
            "is no certificate in PEM",
        ),
        (client, ("up", "--server", "a:1", "--history", "x", *enrolled), "--history x does not exist"),
        (client, ("up", "--server", "a:1", *history, "--catalogue", "x", *enrolled), "--catalogue x does not exist"),
        (client, ("up", "--server", "a:1", "--user", 4, *enrolled), "enrolled as client 3"),
        (client, ("recommend", *here), "error: "),
        (client, ("forget", *here), "error: "),
    ]:
        assert door(*words) == 2, words
        error = capsys.readouterr().err
        assert complaint in error
        assert len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "new" / "server.json").exists()


def test_down_without_a_client_is_no_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert client("down", "--dir", tmp_path) == 0
    assert "no client was running" in capsys.readouterr().out


def test_enrolling_twice_keeps_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert client("enrol", "--dir", tmp_path) == 0
    first = (tmp_path / "client.pub").read_text()
    assert client("enrol", "--dir", tmp_path) == 0
    assert (tmp_path / "client.pub").read_text() == first
    assert "has a key already" in capsys.readouterr().out


def test_help_names_every_command() -> None:
    for package, door in (("fedmoe_server", server_door), ("fedmoe_client", client_door)):
        done = subprocess.run(
            [sys.executable, "-m", package, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in {*door.COMMANDS} - {"clients"}:
            assert f"python -m {package} {name}" in done.stdout


def test_flowers_own_options_are_handed_on(tmp_path: Path) -> None:
    folder, files = ServerFolder(tmp_path), Certificates(Path("/ca"), Path("/cert"), Path("/key"))
    command = superlink_command(folder, Addresses("0.0.0.0:1", "127.0.0.1:2"), files, ["--log-file", "x"])
    assert command[-2:] == ["--log-file", "x"]
    text = " ".join(command)
    for words in (
        "--ssl-ca-certfile /ca --ssl-certfile /cert --ssl-keyfile /key --enable-supernode-auth",
        "--host 127.0.0.1 --port 2 --fleet-api-type grpc-rere --fleet-api-address 0.0.0.0:1",
        f"--database {tmp_path}/superlink.db",
    ):
        assert words in text
    command = supernode_command(ClientFolder(tmp_path), "host:1", 2, "partition-id=3", ["--max-retries", "4"])
    assert command[-2:] == ["--max-retries", "4"]
    assert f"--grpc-rere --superlink host:1 --root-certificates {tmp_path}/ca.crt" in " ".join(command)

    seen: list[list[str]] = []
    doors = {"down": lambda given, extra: seen.append(extra) or 0}
    assert main(server_door.parser(), doors, ["down", "--", "--a", "b"]) == 0
    assert seen == [["--a", "b"]]


def test_a_node_config_is_read_back_by_flower(tmp_path: Path) -> None:
    path = tmp_path / "my history.txt"
    text = node_config({"partition-id": 3, "history": path, "catalogue": None})
    assert parse_config_args([text]) == {"partition-id": 3, "history": str(path)}
    with pytest.raises(FedMoEError, match="rename it"):
        node_config({"history": tmp_path / 'a"b'})


def test_the_bundle_is_an_app_of_flower_and_its_keys_are_the_projects(tmp_path: Path) -> None:
    app = write_bundle(tmp_path / "app")
    assert 0 < len(build_fab_from_disk(app)) < 2 * 1024**2
    ours = tomllib.loads((app / "pyproject.toml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert ours["tool"]["flwr"]["app"]["config"] == project["tool"]["flwr"]["app"]["config"] == RUN_CONFIG
    for part in ("publisher", "components"):
        assert ours["tool"]["flwr"]["app"][part] == project["tool"]["flwr"]["app"][part]
    assert ours["project"]["version"] == project["project"]["version"]
    assert not list(app.rglob("__pycache__"))
    # Whatever a file of it imports of ours is in it as well.
    here = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    inside = {path.stem for path in app.iterdir()}
    for path in app.rglob("*.py"):
        text = re.sub(r"^if TYPE_CHECKING:.*\n(?: .*\n)*", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        imported = {name.split(".")[0] for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", text, re.MULTILINE)}
        assert imported & here <= inside, path


def test_a_server_remembers_its_clients_and_addresses(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    folder.make()
    (tmp_path / "authority").write_bytes(b"pem")
    addresses = Addresses("0.0.0.0:1", "127.0.0.1:2")
    folder.remember(addresses, Certificates(tmp_path / "authority", Path("c"), Path("k")))
    assert folder.addresses() == addresses
    configuration = tomllib.loads((tmp_path / "flower" / "config.toml").read_text())["superlink"]
    assert configuration["fedmoe"] == {"address": "127.0.0.1:2", "root-certificates": str(tmp_path / "ca.crt")}
    assert configuration["default"] == "fedmoe"
    folder.admit(AdmittedClient(0, 2**60, "a"))
    folder.admit(AdmittedClient(1, 2**60 + 1, "b"))
    assert [entry.client for entry in folder.admitted()] == [0, 1]


def test_flowers_command_line_failing_is_an_error(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    folder.make()
    with pytest.raises(FedMoEError, match=r"'flwr list fedmoe' failed: .+"):
        folder.flwr("list", "fedmoe")  # no server, and no configuration that would name one


def test_addresses_in_the_docs_are_the_defaults() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    up = server_door.parser().parse_args(["up"])
    assert up.address.rpartition(":")[2] in text
    for name in re.findall(r"python -m fedmoe_server (\w+)", text):
        assert name in server_door.COMMANDS
    for name in re.findall(r"python -m fedmoe_client (\w+)", text):
        assert name in client_door.COMMANDS


@pytest.mark.parametrize(("installed", "fits"), [("1.39.0", True), ("1.39.7", True), ("1.42.0", False)])
def test_a_flower_that_only_simulates_is_named_in_one_line(
    installed: str,
    fits: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fedmoe.deployment.flower_part.version", lambda package: installed)
    up = ("up", "--address", "no address", "--dir", tmp_path / "new")
    assert server(*up) == client("up", "--server", "no address", "--dir", tmp_path / "new") == 2
    told = f"real clients need Flower 1.39.x, and {installed} is installed: pip install 'fedmoe[deploy]'"
    assert capsys.readouterr().err.count(told) == (0 if fits else 2)


@pytest.mark.parametrize("package", ["fedmoe_client", "fedmoe_server"])
def test_a_supervisor_has_neither_torch_nor_flower_in_memory(package: str) -> None:
    """It is there all day: half a client's memory was what it had imported for a file that it wrote once."""
    heavy = "{'torch', 'flwr', 'ray', 'pydantic', 'grpc'}"
    program = f"import sys, {package}.__main__; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_revoked_clients_do_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ServerFolder(tmp_path / "server")
    folder.make()
    write_json(folder.path / "server.json", {"clients": "127.0.0.1:1", "control": "127.0.0.1:2"})
    keys = [make_key_pair(tmp_path / str(client), client) for client in (4, 5)]
    for key in keys:
        folder.admit(AdmittedClient(key.client, 100 + key.client, key.fingerprint, key.line))
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(ServerFolder, "flwr", lambda self, *words: told.append(words) or {"success": True})
    here = ("--dir", folder.path)
    assert server("revoke", 4, *here) == 0
    assert told == [("supernode", "unregister", "104", "fedmoe")]
    assert [entry.client for entry in folder.admitted()] == [5]
    assert server("revoke", 4, *here) == 2 and "no client 4 is admitted" in capsys.readouterr().err
    assert server("admit", tmp_path / "4.pub", *here) == 2
    assert "4.pub was revoked: neither comes back; enrol in a new folder" in capsys.readouterr().err
    make_key_pair(tmp_path / "another", 4)
    assert server("admit", tmp_path / "another.pub", *here) == 2
    assert "another.pub asks for 4, a revoked number" in capsys.readouterr().err
    assert server("clients", *here) == 0
    assert [line.split()[1::4] for line in capsys.readouterr().out.splitlines()][1] == ["4", keys[0].fingerprint[:16]]
