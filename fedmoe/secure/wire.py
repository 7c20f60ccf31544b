"""The messages of a secure sum as text (JSON) that travels; masked vectors travel as the bytes of their words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np

from fedmoe.errors import FedMoEError
from fedmoe.secure.messages import (
    Agreement,
    Delivery,
    Invitation,
    Members,
    Revealed,
    Session,
    Shares,
    SignedKeys,
    Survivors,
    Terms,
    Unmasking,
)
from fedmoe.secure.primitives import Words, encoded, word_type

M = TypeVar("M", Agreement, Delivery, Invitation, Members, Revealed, Shares, SignedKeys, Survivors, Unmasking)


def to_text(message: Any) -> str:
    """Return a message of ``fedmoe.secure.messages`` as text."""
    return json.dumps(asdict(message), default=bytes.hex, separators=(",", ":"))


def from_text(kind: type[M], text: object) -> M:
    """Return a message of a kind. Raises FedMoEError if the text is none."""
    try:
        found: M = _READERS[kind](json.loads(text))  # type: ignore[arg-type]
        return found
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise FedMoEError(f"what came is no message '{kind.__name__}' of a secure sum") from error


def to_bytes(words: Words) -> bytes:
    """Return a vector as bytes, little-endian."""
    return words.astype(words.dtype.newbyteorder("<")).tobytes()


def from_bytes(content: object, bits: int) -> Words:
    """Return a vector of numbers below ``2**bits``. Raises FedMoEError if the bytes are none."""
    try:
        word = word_type(bits)
        return np.frombuffer(content, word.newbyteorder("<")).astype(word)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError) as error:
        raise FedMoEError("what came is no masked vector") from error


def question_digest(kind: str, arrays: bytes, config: Mapping[str, Any]) -> bytes:
    """Return a digest of what clients are asked: to train or to evaluate, the packed model and the config."""
    return sha256(encoded(kind, arrays, json.dumps(dict(config), sort_keys=True, default=bytes.hex))).digest()


def union_digest(asked: bytes, union: bytes) -> bytes:
    """Return a digest of the second question of two: what was asked at first, and the packed rows of the union."""
    return sha256(encoded("union", asked, union)).digest()


def _session(found: Mapping[str, Any]) -> Session:
    return Session(str(found["run"]), int(found["number"]))


def _terms(found: Mapping[str, Any]) -> Terms:
    return Terms(int(found["minimum"]), float(found["dropouts"]), float(found["corrupt"]))


def _keys(found: Mapping[str, Any]) -> SignedKeys:
    parts = (bytes.fromhex(found[name]) for name in ("sealing", "masking", "promise", "signature"))
    return SignedKeys(int(found["client"]), *parts)


def _clients(found: list[Any]) -> tuple[int, ...]:
    return tuple(int(client) for client in found)


def _blobs(found: Mapping[str, str]) -> dict[int, bytes]:
    return {int(client): bytes.fromhex(content) for client, content in found.items()}


def _numbers(found: Mapping[str, Any]) -> dict[int, int]:
    return {int(client): int(number) for client, number in found.items()}


_READERS: dict[type[Any], Callable[[Any], Any]] = {
    Invitation: lambda f: Invitation(_session(f["session"]), _terms(f["terms"])),
    SignedKeys: _keys,
    Members: lambda f: Members(_session(f["session"]), tuple(map(_keys, f["keys"]))),
    Shares: lambda f: Shares(int(f["client"]), _blobs(f["sealed"])),
    Delivery: lambda f: Delivery(_session(f["session"]), _clients(f["sharing"]), _blobs(f["sealed"])),
    Survivors: lambda f: Survivors(_session(f["session"]), _clients(f["survivors"])),
    Agreement: lambda f: Agreement(int(f["client"]), bytes.fromhex(f["signature"])),
    Unmasking: lambda f: Unmasking(
        _session(f["session"]), _clients(f["survivors"]), _clients(f["dropped"]), _blobs(f["signatures"])
    ),
    Revealed: lambda f: Revealed(int(f["client"]), _numbers(f["seeds"]), _numbers(f["keys"])),
}
