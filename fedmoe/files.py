"""Writing files and folders so that other processes see them whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from fedmoe.errors import FedMoEError


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to disk; raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in a block with the same lock file, and keep others out of this one."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        flock(handle, LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make ``folder``; an operating system's refusal in the block becomes one line that names the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise FedMoEError(
            f"{folder}: cannot be written ({error.strerror or error}) - make room there or choose another folder"
        ) from error


def write_file(path: Path, content: bytes, mode: int = 0o644, durable: bool = False) -> None:
    """Write a file by way of a temporary one beside it, which only its owner can read until it has ``mode``.

    durable: whether the content is forced to disk, so that a crash leaves either the old file or the new one.
    """
    with writable(path.parent):
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def write_json(path: Path, content: Any, mode: int = 0o600) -> None:
    """Write a file that is the old or the new one at any time; without a mode it is its owner's alone."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode(), mode)


def read_json(path: Path, missing: Any = None) -> Any:
    """Return what is in a file of ``write_json``, ``missing`` if there is none. Raises FedMoEError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return missing
    except (OSError, ValueError) as error:
        raise FedMoEError(f"{path} cannot be read ({error}): restore or delete it") from error


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Call ``fill`` with a temporary folder beside ``folder``, then rename it.

    If another process has made ``folder`` in the meantime, that one stays and this one is thrown away.
    """
    with writable(folder.parent):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            fill(temporary)
            os.chmod(temporary, 0o755)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
