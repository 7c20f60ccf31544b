"""Folders, keys, ports: what a deployment leaves on a machine, and who may read it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from fedmoe.deployment.folder import TAG, Folder
from fedmoe.deployment.keys import make_key_pair, read_public_key, read_roster
from fedmoe.deployment.ports import free_port, listens, parse_address, require_free, wait_until_closed
from fedmoe.errors import FedMoEError
from fedmoe.files import read_json, write_json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_its_owners_alone_and_its_programs_stay_inside(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new" / "client")
    folder.make()
    folder.make()
    assert mode(folder.path) == 0o700
    environment = folder.environment({"PATH": "/bin", "FLWR_TELEMETRY_ENABLED": "1"})
    assert environment["FLWR_TELEMETRY_ENABLED"] == "1"  # what the user has chosen stays
    assert environment[TAG] == str(folder.path)
    for name in ("FLWR_HOME", "FEDMOE_CACHE", "MPLCONFIGDIR"):
        assert Path(environment[name]).is_relative_to(folder.path)
    assert environment["PATH"].endswith(f"{os.pathsep}/bin")
    assert folder.environment({"FEDMOE_CACHE": "/elsewhere"})["FEDMOE_CACHE"] == "/elsewhere"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedMoEError, match="choose another --dir"):
        Folder(tmp_path / "file" / "inside").make()


def test_json_files_are_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    assert read_json(path, []) == []
    write_json(path, [1])
    write_json(path, [1, 2])
    assert read_json(path) == [1, 2]
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("[1,")
    with pytest.raises(FedMoEError, match="restore or delete it"):
        read_json(path)


def test_a_key_pair_is_what_flower_reads_and_its_secret_half_is_private(tmp_path: Path) -> None:
    private = tmp_path / "client"
    made = make_key_pair(private)
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert mode(private) == 0o600
    assert read_public_key(tmp_path / "client.pub") == made
    assert 0 <= made.client < 2**48
    assert made.line == key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    with pytest.raises(FileExistsError):
        make_key_pair(private)  # a key is never overwritten


def test_a_client_id_is_asked_for_or_follows_from_the_key(tmp_path: Path) -> None:
    assert make_key_pair(tmp_path / "a", 7).client == 7
    made = make_key_pair(tmp_path / "b")
    (tmp_path / "bare.pub").write_text(made.line)  # as ssh-keygen makes it, without our comment
    assert read_public_key(tmp_path / "bare.pub") == made


def test_other_files_are_no_public_keys(tmp_path: Path) -> None:
    make_key_pair(tmp_path / "client")
    other = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    (tmp_path / "other.pub").write_bytes(other)
    (tmp_path / "text.pub").write_text("hello")
    for name, complaint in {
        "client": "must never leave the client",
        "other.pub": "no elliptic-curve key",
        "text.pub": "holds no public key",
        "missing.pub": "cannot be read",
    }.items():
        with pytest.raises(FedMoEError, match=complaint):
            read_public_key(tmp_path / name)


def test_addresses_and_ports() -> None:
    assert parse_address("example.org:9092") == ("example.org", 9092)
    assert parse_address("[::1]:1") == ("::1", 1)
    for wrong in ("example.org", ":1", "host:", "host:0", "host:65536", "host:port"):
        with pytest.raises(FedMoEError, match="write HOST:PORT"):
            parse_address(wrong)
    port = free_port()
    require_free("127.0.0.1", port, "--address")
    assert not listens("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        assert listens("0.0.0.0", port)
        assert not wait_until_closed("127.0.0.1", port, 0.2)
        with pytest.raises(FedMoEError, match="--address 127.0.0.1:"):
            require_free("127.0.0.1", port, "--address")
    assert wait_until_closed("127.0.0.1", port, 1.0)


def test_a_roster_has_a_line_for_each_client(tmp_path: Path) -> None:
    keys = [make_key_pair(tmp_path / f"key-{client}", client) for client in (7, 8)]
    roster = tmp_path / "roster"
    lines = [(tmp_path / f"key-{client}.pub").read_text() for client in (7, 8)]
    roster.write_text("\n".join(lines))
    assert read_roster(roster) == {7: keys[0].line, 8: keys[1].line}
    for text, words in (
        (lines[0] * 2, "a client or a key twice"),
        ("", "is empty"),
        (lines[0] + "nonsense\n", "line 2 holds no public key"),
        (lines[0] + lines[0].replace("client-7", "client-9"), "a key twice"),
    ):
        roster.write_text(text)
        with pytest.raises(FedMoEError, match=words):
            read_roster(roster)
