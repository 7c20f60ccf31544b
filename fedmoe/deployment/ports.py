"""Addresses and ports of this machine."""

from __future__ import annotations

import socket
import time

from fedmoe.deployment.folder import HERE
from fedmoe.errors import FedMoEError


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` (an IPv6 host in brackets). Raises FedMoEError if it is none."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise FedMoEError(f"'{text}' is no address: write HOST:PORT, for example 127.0.0.1:9092")
    return host.removeprefix("[").removesuffix("]"), int(port)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def require_free(host: str, port: int, option: str) -> None:
    """Raise FedMoEError if a port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FedMoEError(
                f"{option} {host}:{port} cannot be used ({error.strerror}): stop what listens there, or choose another"
            ) from error


def own_address(address: str, option: str) -> tuple[str, int]:
    """Return host and port. Raises FedMoEError if it is taken, or another machine can reach it."""
    host, port = parse_address(address)
    if host not in HERE or ":" in host:
        raise FedMoEError(
            f"{option} {address}: the page is for this machine alone, as on 127.0.0.1:{port}; from another one, "
            f"look at it through 'ssh -L {port}:127.0.0.1:{port}'"
        )
    require_free(host, port, option)
    return host, port


def here(host: str) -> str:
    """Return the host at which this machine reaches what listens on ``host``, which may be every one of its own."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections at an address; ``0.0.0.0`` and ``::`` mean this machine."""
    try:
        with socket.create_connection((here(host), port), timeout=1.0):
            return True
    except OSError:
        return False


def wait_until_closed(host: str, port: int, seconds: float) -> bool:
    """Wait until nothing listens at an address any more; return whether that is so."""
    deadline = time.monotonic() + seconds
    while listens(host, port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
