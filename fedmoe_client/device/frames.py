"""What goes over the local socket between a client app and its node's resident process: JSON and raw bytes.

A frame is the length of the JSON (8 bytes, little-endian), the JSON with ``sizes``, and blobs of these sizes.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

LENGTH = 8


def send(connection: socket.socket, content: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Send one frame."""
    head = json.dumps({**content, "sizes": [len(blob) for blob in blobs]}).encode()
    connection.sendall(len(head).to_bytes(LENGTH, "little") + head)
    for blob in blobs:
        connection.sendall(blob)


def receive(connection: socket.socket, descriptors: list[int] | None = None) -> tuple[dict[str, Any], list[bytes]]:
    """Return one frame. Raises ConnectionError if the other side closed before its end.

    descriptors: a list to which the file descriptors are added that came with the frame; the caller closes them.
    """
    begin = b""
    if descriptors is not None:
        begin, found, _, _ = socket.recv_fds(connection, LENGTH, 2)
        descriptors += found
        if not begin:
            raise ConnectionError("the other side closed the connection")
    length = int.from_bytes(begin + _exactly(connection, LENGTH - len(begin)), "little")
    content: dict[str, Any] = json.loads(_exactly(connection, length))
    return content, [_exactly(connection, size) for size in content.pop("sizes")]


def _exactly(connection: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = connection.recv_into(view[got:])
        if not count:
            raise ConnectionError("the other side closed the connection")
        got += count
    return bytes(buffer)
