"""The server's TLS certificate: made here with an authority of its own, or given by the operator.

Clients trust the authority (``ca.crt``), so the server's certificate can be renewed without telling them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmoe.errors import FedMoEError
from fedmoe.files import write_file

LOCAL = ("localhost", "127.0.0.1", "::1")
AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=825)
RENEW_BEFORE = timedelta(days=30)


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: the authority's certificate, the server's certificate (with its chain) and private key."""

    authority: Path
    certificate: Path
    key: Path


def own_certificates(folder: Path, names: Iterable[str]) -> Certificates:
    """Return the certificates in a folder, made on first use, and again where they lack a name or are about to end.

    names: host names and addresses by which clients reach the server; this machine's own are always among them.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = Certificates(folder / "ca.crt", folder / "server.pem", folder / "server.key")
    authority_key = folder / "ca.key"
    if not (files.authority.exists() and authority_key.exists()):
        _make_authority(files.authority, authority_key)
        files.certificate.unlink(missing_ok=True)
    wanted = list(dict.fromkeys([*LOCAL, *names]))
    if not files.certificate.exists() or _outdated(_load(files.certificate), wanted):
        _make_server(files, authority_key, wanted)
    return files


def given_certificates(files: Certificates, names: Sequence[str]) -> Certificates:
    """Check certificates that the operator gave.

    names: what the certificate must be valid for.

    Raises:
        FedMoEError: a file cannot be read, key and certificate do not belong together, the certificate has ended, was
            not issued by the authority, or lacks a name.
    """
    certificate, authority = _load(files.certificate), _load(files.authority)
    if _public(_load_key(files.key)) != certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ):
        raise FedMoEError(f"--key {files.key} does not belong to --certificate {files.certificate}: give its own key")
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise FedMoEError(
            f"--certificate {files.certificate} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}: renew it"
        )
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise FedMoEError(f"--certificate {files.certificate} was not issued by --ca {files.authority}") from error
    if missing := [name for name in names if name not in _names(certificate)]:
        raise FedMoEError(
            f"--certificate {files.certificate} is not valid for {', '.join(missing)}: its names are "
            f"{', '.join(sorted(_names(certificate)))}; have one made for all of them"
        )
    return files


def _make_authority(certificate: Path, key: Path) -> None:
    made = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedMoE server authority")])
    builder = _builder(name, name, made.public_key(), AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    _write_key(key, made)
    certificate.write_bytes(builder.sign(made, hashes.SHA384()).public_bytes(Encoding.PEM))


def _make_server(files: Certificates, authority_key: Path, names: Sequence[str]) -> None:
    made, authority = ec.generate_private_key(ec.SECP384R1()), _load(files.authority)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedMoE server")])
    builder = _builder(name, authority.subject, made.public_key(), SERVER_LIFE)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    signer = _load_key(authority_key)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),  # type: ignore[arg-type]
        critical=False,
    )
    _write_key(files.key, made)
    files.certificate.write_bytes(builder.sign(signer, hashes.SHA384()).public_bytes(Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of clients may be a little behind
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(entry.value) for entry in found}


def _outdated(certificate: x509.Certificate, names: Sequence[str]) -> bool:
    ends_soon = certificate.not_valid_after_utc - datetime.now(UTC) < RENEW_BEFORE
    return ends_soon or not set(names) <= _names(certificate)


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FedMoEError(f"certificate {path} cannot be read ({error}): give a certificate in PEM") from error


def _load_key(path: Path) -> CertificateIssuerPrivateKeyTypes:
    try:
        key: CertificateIssuerPrivateKeyTypes = load_pem_private_key(path.read_bytes(), None)  # type: ignore[assignment]
    except (OSError, ValueError, TypeError) as error:
        raise FedMoEError(f"private key {path} cannot be read ({error}): give a key in PEM, unencrypted") from error
    return key


def _public(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
