"""How a link treats packets: ``python -m benchmarks.echo ADDRESS`` sends ICMP echo requests (root) and prints JSON.

``sent``, ``answered``, and the ``least`` and ``median`` round trip in milliseconds (null if nothing was answered).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

EVERY, PATIENCE = 0.01, 1.0  # seconds between requests, and from the last one to the end
_REQUEST, _REPLY = 8, 0  # types of ICMP messages (RFC 792)


def echo(address: str, count: int) -> dict[str, Any]:
    """Send ``count`` requests to an IPv4 address and return what became of them, as described above."""
    me = os.getpid() & 0xFFFF
    sent: dict[int, float] = {}
    trips: dict[int, float] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as wire:
        wire.connect((address, 0))
        for number in range(count):
            sent[number] = time.monotonic()  # before it: on a busy machine the next line may take its time
            wire.send(request(me, number))
            _listen(wire, me, sent, trips, EVERY if number < count - 1 else PATIENCE)
    milliseconds = [1000 * trip for trip in trips.values()]
    return {
        "sent": count,
        "answered": len(trips),
        "least": min(milliseconds, default=None),
        "median": statistics.median(milliseconds) if milliseconds else None,
    }


def _listen(wire: socket.socket, me: int, sent: dict[int, float], trips: dict[int, float], seconds: float) -> None:
    """Take replies for so many seconds, or until all requests are answered."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and (len(trips) < len(sent) or seconds == EVERY):
        wire.settimeout(left)
        try:
            packet = wire.recv(2048)
        except TimeoutError:
            return
        kind, _, _, owner, number = struct.unpack_from("!BBHHH", packet, 4 * (packet[0] & 15))  # behind the IP header
        if (kind, owner) == (_REPLY, me) and number in sent:
            trips.setdefault(number, time.monotonic() - sent[number])


def request(owner: int, number: int) -> bytes:
    """Return an echo request; both numbers are 16 bits."""
    without = struct.pack("!BBHHH", _REQUEST, 0, 0, owner, number)
    return struct.pack("!BBHHH", _REQUEST, 0, checksum(without), owner, number)


def checksum(message: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def main(words: Sequence[str]) -> int:
    """Print what became of the requests; return the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.echo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--count", type=int, default=200, help="number of requests, 100 a second")
    given = parser.parse_args(list(words))
    print(json.dumps(echo(given.address, given.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
