"""What a client keeps on its device between rounds, runs and crashes: one folder, readable by its owner alone.

* ``private-VERSION.state``: its private parameters after each of the last rounds, and its memory; one file for each
  model version, so another model starts afresh and finds its own again;
* ``global.state``: the arrays last received from the server, and what ``recommend`` needs to use them;
* ``summing-RUN.state``: an answer whose touched rows were counted under masks, until the rest of it is added up;
* ``NAME.json``: small notes, such as the client's number.

A ``.state`` file is a line with the SHA-256 of the rest, then safetensors. Every file is written beside its place,
forced to disk and renamed, so that a crash leaves either the old or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedmoe.errors import FedMoEError
from fedmoe.files import sync, write_file

MAGIC = b"fedmoe-state 1 "
NUMBER_BITS = 62  # of a client's number that is drawn: no two clients draw the same
_HEADER = len(MAGIC) + 64 + 1
_META = "fedmoe"
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class State:
    """The content of a ``.state`` file: named arrays, and notes that JSON can hold."""

    arrays: dict[str, NDArray[Any]]
    about: dict[str, Any]


class StateFolder:
    """The folder of one client. Callers hold ``lock`` while they read and write."""

    def __init__(self, folder: Path) -> None:
        """folder: made, with mode 0700, if it is not there. Raises FedMoEError if it cannot be made."""
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FedMoEError(f"state folder {folder} cannot be made: {error.strerror}") from error

    @classmethod
    def existing(cls, folder: Path) -> StateFolder:
        """Open a folder that is there. Raises FedMoEError if it is not."""
        if not folder.is_dir():
            raise FedMoEError(f"{folder} does not exist: give the state folder of a client (--state-dir)")
        return cls(folder)

    @contextmanager
    def lock(self, seconds: float = 600.0) -> Iterator[None]:
        """Keep other processes out. Raises FedMoEError if another one holds the lock for longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise FedMoEError(f"{self.folder} is in use by another process of this client") from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(handle)

    def number(self, given: int | None) -> int:
        """Return the client's number: the given one, or one that is drawn once and kept.

        Raises FedMoEError if the folder belongs to a client of another number.
        """
        kept = self.note("client").get("number")
        if kept is None:
            kept = secrets.randbits(NUMBER_BITS) if given is None else given
            self.keep_note("client", {"number": kept})
        if given is not None and given != kept:
            raise FedMoEError(
                f"{self.folder} belongs to client {kept}, this node is client {given}: use another state-dir"
            )
        return int(kept)

    def note(self, name: str) -> dict[str, Any]:
        """Return a small note, empty if there is none."""
        path = self.folder / f"{name}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("not a table")
            return content
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise FedMoEError(f"{path} cannot be read ({error}): remove it, or forget this client's state") from error

    def keep_note(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a small note, unless it says that already."""
        if self.note(name) != content:
            write_file(self.folder / f"{name}.json", json.dumps(content).encode(), mode=0o600, durable=True)

    def load(self, name: str) -> State | None:
        """Return the content of ``NAME.state``, None if there is none. Raises FedMoEError if it is damaged."""
        path = self.folder / f"{name}.state"
        try:
            content = path.read_bytes()
            if (form := content[:32].split(b" ")[:2]) != MAGIC.split() and form[0] == MAGIC.split()[0]:
                raise FedMoEError(
                    f"{path} is of another version of FedMoE (form {form[1].decode()}, this one reads "
                    f"{MAGIC.split()[1].decode()}): go back to that version, or remove the file: the client goes on "
                    "from the server's values"
                )
            return _parsed(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise FedMoEError(
                f"{path} is damaged ({error}): remove it, and the client goes on from the server's values"
            ) from error

    def save(self, name: str, state: State) -> None:
        """Write ``NAME.state``, mode 0600. Raises FedMoEError if it cannot be written; the old one is then kept."""
        arrays = {key: np.asarray(array, order="C") for key, array in state.arrays.items()}
        body = save(arrays, metadata={_META: json.dumps({"names": list(arrays), "about": state.about})})
        content = MAGIC + sha256(body).hexdigest().encode() + b"\n" + body
        write_file(self.folder / f"{name}.state", content, mode=0o600, durable=True)

    def drop(self, name: str) -> None:
        """Remove ``NAME.state``, if it is there."""
        (self.folder / f"{name}.state").unlink(missing_ok=True)

    def erase(self) -> list[str]:
        """Remove everything but the lock and return the names of what was there."""
        names = sorted(path.name for path in self.folder.iterdir() if path.is_file() and path.name != "lock")
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        sync(self.folder)
        return names


def _parsed(content: bytes) -> State:
    if not content.startswith(MAGIC) or content[_HEADER - 1 : _HEADER] != b"\n":
        raise ValueError("it is no state file of this version")
    body = content[_HEADER:]
    if sha256(body).hexdigest().encode() != content[len(MAGIC) : _HEADER - 1]:
        raise ValueError("its checksum differs")
    length = int.from_bytes(body[:8], "little")  # safetensors: the header's length, then the header
    meta = json.loads(json.loads(body[8 : 8 + length])["__metadata__"][_META])
    arrays = load(body)
    return State({name: arrays[name] for name in meta["names"]}, meta["about"])
