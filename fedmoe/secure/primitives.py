"""The cryptography of a secure sum, all from the package ``cryptography``: agreed keys, masks, seals, signatures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError

Words = NDArray[np.unsignedinteger[Any]]  # of the smallest type that holds an entry, see ``word_type``
LARGEST_BITS = 64
_NONCE = 12


def encoded(*parts: str | int | bytes) -> bytes:
    """Return parts as bytes from which they can be told apart: no two lists of parts have the same."""
    pieces = []
    for part in parts:
        kind, content = (b"b", part) if isinstance(part, bytes) else (type(part).__name__[:1].encode(), str(part))
        body = content if isinstance(content, bytes) else content.encode()
        pieces += [kind, len(body).to_bytes(8, "big"), body]
    return b"".join(pieces)


def random_key() -> bytes:
    """Return 32 bytes from the system's generator: a seed, or an X25519 private key."""
    return os.urandom(32)


def public_of(private: bytes) -> bytes:
    """Return the X25519 public key of a private one, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed_key(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes that the two owners of the key pairs have in common, for one purpose.

    Raises ValueError for a public key that is none, or of small order.
    """
    return derived(
        X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public)), purpose
    )


def derived(secret: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes that follow from a secret for one purpose (HKDF with SHA-256)."""
    return HKDF(SHA256(), 32, salt=None, info=purpose).derive(secret)


def stream(key: bytes, length: int, bits: int) -> Words:
    """Return ``length`` numbers, uniform below ``2**bits``: the key stream of AES-256 in counter mode.

    A key is used for one mask only, so the counter begins at 0.
    """
    word = word_type(bits)
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    drawn: Words = np.frombuffer(cipher.update(bytes(length * word.itemsize)), word.newbyteorder("<"))
    mask: Words = drawn.astype(word) & largest(bits)
    return mask


def word_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the type of numbers below ``2**bits``. Raises ValueError unless ``bits`` is from 1 to 64."""
    if not 1 <= bits <= LARGEST_BITS:
        raise ValueError(f"{bits} bits: a ring has 1 to {LARGEST_BITS}")
    return next(np.dtype(f"u{size}") for size in (1, 2, 4, 8) if bits <= 8 * size)


def largest(bits: int) -> np.unsignedinteger[Any]:
    """Return the largest number of a ring; ``& largest(bits)`` is the remainder modulo ``2**bits``."""
    number: np.unsignedinteger[Any] = word_type(bits).type(2**bits - 1)
    return number


def in_ring(vector: Words, bits: int) -> bool:
    """Return whether a vector is what a secure sum takes: one axis, the ring's type, numbers below ``2**bits``."""
    fits = vector.ndim == 1 and vector.dtype == word_type(bits)
    return bool(fits and (not len(vector) or vector.max() <= largest(bits)))


def sealed(key: bytes, content: bytes, about: bytes) -> bytes:
    """Return a content encrypted by ChaCha20-Poly1305; ``about`` is not part of it and must be known to open it."""
    nonce = os.urandom(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, content, about)


def opened(key: bytes, content: bytes, about: bytes) -> bytes:
    """Return what was sealed. Raises ValueError if it, or ``about``, is not as it was."""
    try:
        return ChaCha20Poly1305(key).decrypt(content[:_NONCE], content[_NONCE:], about)
    except InvalidTag:
        raise ValueError("the seal is broken") from None


@dataclass(frozen=True)
class Signer:
    """Signs as one client, with the key that the server has admitted (ECDSA on P-384)."""

    client: int
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_file(cls, client: int, path: Path) -> Signer:
        """Read a client's private key. Raises FedMoEError if the file is none."""
        try:
            key = load_ssh_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise FedMoEError(f"private key {path} cannot be read ({error}): make one with 'enrol'") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FedMoEError(f"{path} is no elliptic-curve key: make one with 'fedmoe_client enrol'")
        return cls(client, key)

    def sign(self, content: bytes) -> bytes:
        """Return a signature."""
        return self.key.sign(content, ec.ECDSA(SHA384()))


def signed_by(line: str, signature: bytes, content: bytes) -> bool:
    """Return whether a signature is by the public key on an OpenSSH line, over a content."""
    try:
        _public_key(line).verify(signature, content, ec.ECDSA(SHA384()))
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=4096)
def _public_key(line: str) -> ec.EllipticCurvePublicKey:
    """Return a public key. Raises FedMoEError if the line holds none."""
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FedMoEError(f"admitted key '{line[:40]}' cannot be read ({error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FedMoEError(f"admitted key '{line[:40]}' is no elliptic-curve key")
    return key
