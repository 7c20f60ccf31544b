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
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FedMoEError(f"{path} holds no public key ({error}): make one with 'fedmoe_client enrol'") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FedMoEError(f"{path} is no elliptic-curve key: make one with 'fedmoe_client enrol'")
    line = " ".join(text.split()[:2])
    comment = text.split()[2] if len(text.split()) > 2 else ""
    number = comment.removeprefix(COMMENT)
    client = int(number) if comment.startswith(COMMENT) and number.isdigit() else _id_from(line)
    return PublicKey(line, hashlib.sha256(line.encode()).hexdigest(), client)


def _id_from(line: str) -> int:
    return int.from_bytes(hashlib.sha256(line.encode()).digest()[:8]) % LARGEST_ID
