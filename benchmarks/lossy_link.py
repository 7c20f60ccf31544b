"""A link that delays and loses Ethernet frames in user space, for kernels that have no netem.

Its two ends are TAP devices; a thread carries each frame that is sent into one of them to the other, ``delay`` seconds
later, or never. Both ends are real interfaces, so it is TCP itself that sees the delay and sends again what was lost.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # <linux/if_tun.h>
_LONGEST_FRAME = 65536


class Wire:
    """One direction of a link: a frame comes out ``delay`` seconds after it went in, in order, or is lost.

    Attributes:
        carried, lost: number of frames that went in and were, or were not, to come out.
    """

    def __init__(self, delay: float, loss: float, seed: int) -> None:
        """delay: seconds; loss: probability of each frame, 0 to 1, drawn from ``seed`` alone."""
        self._delay, self._loss = delay, loss
        self._drawn = random.Random(seed)
        self._under_way: deque[tuple[float, bytes]] = deque()
        self.carried = self.lost = 0

    def put(self, frame: bytes, now: float) -> None:
        """Send a frame at time ``now``, which never goes back."""
        if self._drawn.random() < self._loss:
            self.lost += 1
        else:
            self.carried += 1
            self._under_way.append((now + self._delay, frame))

    def take(self, now: float) -> list[bytes]:
        """Return the frames that have arrived by ``now``, the earliest first."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now:
            arrived.append(self._under_way.popleft()[1])
        return arrived

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next frame arrives, None if none is under way."""
        return max(0.0, self._under_way[0][0] - now) if self._under_way else None


@contextmanager
def lossy_link(ends: tuple[str, str], delay: float, loss: float, seed: int) -> Iterator[tuple[Wire, Wire]]:
    """Make a link between two new TAP devices; yield its wires, from the first to the second end and back.

    ends: names of the devices, made in the namespace of this process and still down. One that is moved to another
    namespace afterwards remains linked. They are gone at the end. delay: seconds; loss: 0 to 1, of each direction.

    Raises OSError where this is not allowed.
    """
    wires = Wire(delay, loss, 2 * seed), Wire(delay, loss, 2 * seed + 1)
    taps: list[int] = []
    stopping = os.eventfd(0)
    carrier: threading.Thread | None = None
    try:
        for name in ends:
            taps.append(_tap(name))
        there, back = (taps[0], taps[1], wires[0]), (taps[1], taps[0], wires[1])
        carrier = threading.Thread(target=_carry, args=((there, back), stopping), daemon=True)
        carrier.start()
        yield wires
    finally:
        os.eventfd_write(stopping, 1)
        if carrier is not None:
            carrier.join()
        for handle in (*taps, stopping):
            os.close(handle)


def _tap(name: str) -> int:
    """Make a TAP device; return its descriptor, which reads and writes one frame at a time and never waits."""
    handle = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(handle)
        raise
    return handle


def _carry(directions: tuple[tuple[int, int, Wire], ...], stopping: int) -> None:
    """Carry frames until ``stopping`` can be read. directions: where from, where to, by which wire."""
    sources = [source for source, _, _ in directions]
    while True:
        now = time.monotonic()
        waits = [wait for _, _, wire in directions if (wait := wire.wait(now)) is not None]
        ready = select.select([*sources, stopping], [], [], min(waits, default=None))[0]
        if stopping in ready:
            return
        for source, target, wire in directions:
            if source in ready:
                for frame in _waiting(source):
                    wire.put(frame, time.monotonic())
            for frame in wire.take(time.monotonic()):
                try:
                    os.write(target, frame)
                except OSError:  # the device is down, or will not take more: lost, as on any cable
                    wire.carried, wire.lost = wire.carried - 1, wire.lost + 1


def _waiting(source: int) -> Iterator[bytes]:
    """Yield the frames that wait to be read."""
    while True:
        try:
            yield os.read(source, _LONGEST_FRAME)
        except OSError:  # none is left, or the device is down
            return
