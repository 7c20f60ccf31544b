"""Key pairs of clients: made on the client; the server gets the public half, as one line of text."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)

from fedmoe.errors import FedMoEError

COMMENT = "fedmoe-client-"
LARGEST_ID = 2**48  # of a client id that comes from the key; collisions are refused when a client is admitted


@dataclass(frozen=True)
class PublicKey:
    """A client's public key and the client id that it asks to be admitted with."""

    line: str
    fingerprint: str
    client: int


def make_key_pair(private: Path, client: int | None = None) -> PublicKey:
    """Make a P-384 key pair: ``private``, mode 0600, and ``private`` + ``.pub``.

    client: the client id to ask for; None: one that follows from the key.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    chosen = _id_from(line) if client is None else client
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    public = public_half(private)
    public.write_text(f"{line} {COMMENT}{chosen}\n", encoding="utf-8")
    return read_public_key(public)


def public_half(private: Path) -> Path:
    """Return the path of the public half of a key pair."""
    return private.with_name(f"{private.name}.pub")


def read_public_key(path: Path) -> PublicKey:
    """Read a public key. Raises FedMoEError if the file is none, or a private key."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FedMoEError(f"public key {path} cannot be read ({error}): give the .pub file of the client") from error
    if "PRIVATE KEY" in text:
        raise FedMoEError(f"{path} is a private key: it must never leave the client; give {path.name}.pub")
    return parsed_public_key(text, str(path))


def read_roster(path: Path) -> dict[int, str]:
    """Return client id -> public key of a file with a line for each client, as in its ``.pub`` file.

    Raises FedMoEError for a line that holds no key, and for a client or a key that is there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedMoEError(f"roster {path} cannot be read ({error}): give a file of clients' public keys") from error
    keys = [parsed_public_key(line.strip(), f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    found = {key.client: key.line for key in keys}
    if not keys or len(set(found.values())) < len(keys):
        raise FedMoEError(f"roster {path} is empty, or holds a client or a key twice: one line for each client")
    return found


def parsed_public_key(text: str, where: str) -> PublicKey:
    """Return the public key on a line. Raises FedMoEError if there is none."""
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FedMoEError(f"{where} holds no public key ({error}): make one with 'fedmoe_client enrol'") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FedMoEError(f"{where} is no elliptic-curve key: make one with 'fedmoe_client enrol'")
    line = " ".join(text.split()[:2])
    comment = text.split()[2] if len(text.split()) > 2 else ""
    number = comment.removeprefix(COMMENT)
    client = int(number) if comment.startswith(COMMENT) and number.isdigit() else _id_from(line)
    return PublicKey(line, hashlib.sha256(line.encode()).hexdigest(), client)


def _id_from(line: str) -> int:
    return int.from_bytes(hashlib.sha256(line.encode()).digest()[:8]) % LARGEST_ID
