"""Clients' private state in files: Flower's own serialisation of a RecordDict, framed by client id, no pickle.

A folder holds ``clients.json`` - ``{"format": 1, "num_clients": n, "files": {name: clients in it}}`` - and the files
it names. A file is a magic line, then for each client its id, the length in bytes (two little-endian 64-bit numbers)
and the serialised state; it ends with the id 2**64 - 1 and the number of clients, so that a cut is noticed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from fedmoe.errors import FedMoEError

MAGIC = b"fedmoe clients 1\n"
FRAME = struct.Struct("<QQ")
END = 2**64 - 1
INDEX = "clients.json"


def write_clients(path: Path, states: Iterable[tuple[int, bytes]]) -> int:
    """Write (client id, serialised state), in the given order, and flush them to the disk; return their number."""
    count = 0
    with path.open("wb") as file:
        file.write(MAGIC)
        for client_id, data in states:
            file.write(FRAME.pack(client_id, len(data)))
            file.write(data)
            count += 1
        file.write(FRAME.pack(END, count))
        file.flush()
        os.fsync(file.fileno())
    return count


def read_clients(source: Path | BinaryIO, wanted: Callable[[int], bool]) -> Iterator[tuple[int, bytes]]:
    """Yield (client id, serialised state) of the wanted clients of a file, given by its path or open at its beginning.

    Raises FedMoEError naming the file if it cannot be read, is cut short or is not such a file.
    """
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                yield from _read_frames(file, wanted)
        else:
            yield from _read_frames(source, wanted)
    except (OSError, ValueError, OverflowError, MemoryError) as error:  # the last two: a length that makes no sense
        name = source if isinstance(source, Path) else getattr(source, "name", "the snapshot")
        raise FedMoEError(
            f"clients' state in {name} cannot be read ({error}): restore the file or start from another checkpoint"
        ) from error


def _read_frames(file: BinaryIO, wanted: Callable[[int], bool]) -> Iterator[tuple[int, bytes]]:
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("not a file of clients' state")
    count = 0
    while True:
        client_id, length = FRAME.unpack(_exactly(file, FRAME.size))
        if client_id == END:
            if length != count:
                raise ValueError(f"{count} clients where {length} were written")
            return
        if wanted(client_id):
            yield client_id, _exactly(file, length)
        else:
            file.seek(length, os.SEEK_CUR)
        count += 1


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("cut short")
    return data


def write_index(folder: Path, num_clients: int, files: Mapping[str, int]) -> None:
    """Write ``clients.json`` of a folder; ``files``: name -> clients in it."""
    path = folder / INDEX
    with path.open("w", encoding="utf-8") as file:
        json.dump({"format": 1, "num_clients": num_clients, "files": dict(files)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_index(folder: Path, num_clients: int) -> list[Path]:
    """Return the files of a folder. Raises FedMoEError if it holds no clients' state, or that of another federation."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        saved, files = index["num_clients"], [folder / name for name in index["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedMoEError(
            f"{path} cannot be read ({type(error).__name__}: {error}): give a folder that save_clients has written"
        ) from error
    if saved != num_clients:
        raise FedMoEError(
            f"{path} holds the state of {saved} clients, this run has {num_clients}: use the same data set"
        )
    for file in files:
        if not file.is_file():
            raise FedMoEError(f"{file} is missing: restore the file or start from another checkpoint")
    return files
