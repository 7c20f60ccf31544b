"""Certificates: made here, renewed when they must be, or brought by the operator."""

from __future__ import annotations

import shutil
import socket
import ssl
import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from fedmoe.errors import FedMoEError
from fedmoe_server.deploy import certificates
from fedmoe_server.deploy.certificates import Certificates, given_certificates, own_certificates


def shake_hands(files: Certificates, authority: Path, name: str) -> str | None:
    """Connect to a TLS server with these files; return the protocol's version."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    client = ssl.create_default_context(cafile=str(authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as wire:
            return wire.version()
    finally:
        ours.close()
        thread.join()


def test_clients_trust_what_is_made_here_and_nothing_else(tmp_path: Path) -> None:
    files = own_certificates(tmp_path / "a", ["fed.example.org", "10.0.0.7"])
    for name in ("fed.example.org", "10.0.0.7", "localhost", "127.0.0.1", "::1"):
        assert shake_hands(files, files.authority, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, files.authority, "other.example.org")
    other = own_certificates(tmp_path / "b", [])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, other.authority, "localhost")
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) == 0o600


def test_a_new_name_or_an_end_in_sight_renews_the_certificate_under_the_same_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = own_certificates(tmp_path, [])
    authority, first = files.authority.read_bytes(), files.certificate.read_bytes()
    assert own_certificates(tmp_path, ["localhost"]).certificate.read_bytes() == first
    second = own_certificates(tmp_path, ["fed.example.org"]).certificate.read_bytes()
    assert second != first
    monkeypatch.setattr(certificates, "RENEW_BEFORE", timedelta(days=10_000))
    assert own_certificates(tmp_path, []).certificate.read_bytes() != second
    assert files.authority.read_bytes() == authority
    assert shake_hands(files, files.authority, "localhost")


def test_given_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, other = own_certificates(tmp_path / "a", ["fed.example.org"]), own_certificates(tmp_path / "b", [])
    assert given_certificates(files, ["fed.example.org", "127.0.0.1"]) == files
    with pytest.raises(FedMoEError, match=r"is not valid for other\.example\.org"):
        given_certificates(files, ["other.example.org"])
    with pytest.raises(FedMoEError, match="does not belong to --certificate"):
        given_certificates(Certificates(files.authority, files.certificate, other.key), [])
    with pytest.raises(FedMoEError, match="was not issued by --ca"):
        given_certificates(Certificates(other.authority, files.certificate, files.key), [])
    with pytest.raises(FedMoEError, match=r"certificate .*missing\.pem cannot be read"):
        given_certificates(Certificates(files.authority, tmp_path / "missing.pem", files.key), [])
    shutil.copy(files.certificate, tmp_path / "no.key")
    with pytest.raises(FedMoEError, match="give a key in PEM"):
        given_certificates(Certificates(files.authority, files.certificate, tmp_path / "no.key"), [])
    monkeypatch.setattr(certificates, "SERVER_LIFE", timedelta(seconds=-1))
    ended = own_certificates(tmp_path / "c", [])
    with pytest.raises(FedMoEError, match="renew it"):
        given_certificates(ended, [])
