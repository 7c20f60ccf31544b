"""Clients' private state in a file: Flower's own serialisation of a RecordDict, framed by client id, no pickle.

The file is a magic line and the number of clients of the federation, then for each client that keeps something its id,
the length in bytes (all numbers are little-endian, of 64 bits) and the serialised state. It ends with the id
2**64 - 1 and the number of clients in it, so that a cut is noticed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from fedmoe.errors import FedMoEError

CLIENTS_FILE = "clients.bin"
MAGIC = b"fedmoe clients 2\n"
NUMBER = struct.Struct("<Q")
FRAME = struct.Struct("<QQ")
END = 2**64 - 1


def write_clients(path: Path, num_clients: int, states: Iterable[tuple[int, bytes]]) -> int:
    """Write (client id, serialised state), in the given order, and flush them to the disk; return their number."""
    count = 0
    with path.open("wb") as file:
        file.write(MAGIC + NUMBER.pack(num_clients))
        for client_id, data in states:
            file.write(FRAME.pack(client_id, len(data)))
            file.write(data)
            count += 1
        file.write(FRAME.pack(END, count))
        file.flush()
        os.fsync(file.fileno())
    return count


def open_clients(path: Path) -> BinaryIO:
    """Open a file for ``read_clients``. Raises FedMoEError if that is not possible."""
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def read_clients(
    file: BinaryIO, num_clients: int, wanted: Callable[[int], bool] = lambda _: True
) -> Iterator[tuple[int, bytes]]:
    """Yield (client id, serialised state) of the wanted clients of a file, from its beginning.

    Raises FedMoEError naming the file if it is cut short, damaged, or of a federation of another size.
    """
    name = getattr(file, "name", "the snapshot")
    try:
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not a file of clients' state")
        (saved,) = NUMBER.unpack(_exactly(file, NUMBER.size))
        if saved != num_clients:
            raise FedMoEError(
                f"{name} holds the state of {saved} clients, this run has {num_clients}: use the same data set"
            )
        count = 0
        while True:
            client_id, length = FRAME.unpack(_exactly(file, FRAME.size))
            if client_id == END:
                break
            if wanted(client_id):
                yield client_id, _exactly(file, length)
            else:
                file.seek(length, os.SEEK_CUR)
            count += 1
        if length != count:
            raise ValueError(f"{count} clients where {length} were written")
    except (OSError, ValueError, OverflowError, MemoryError) as error:  # the last two: a length that makes no sense
        raise _unreadable(name, error) from error


def _unreadable(name: object, error: BaseException) -> FedMoEError:
    return FedMoEError(
        f"clients' state in {name} cannot be read ({error}): restore the file or start from another checkpoint"
    )


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("cut short")
    return data
