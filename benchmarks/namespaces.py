"""Network namespaces with one slow, lossy link to this machine each, by the kernel's netem or in user space."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from benchmarks.lossy_link import TUN, Wire, lossy_link

How = Literal["netem", "switch"]
DELAY, LOSS = 0.1, 0.02  # seconds and probability, of each frame in each direction
NETWORK = "10.213.{}.{}"


@dataclass(frozen=True)
class Namespace:
    """A network namespace. outside: this machine's address on the link; wires: those of a ``switch``, there and back.

    ``command`` runs what follows it inside.
    """

    name: str
    outside: str
    wires: tuple[Wire, ...]

    @property
    def command(self) -> list[str]:
        """The words that run a command inside."""
        return ["ip", "netns", "exec", self.name]

    def resent(self) -> int:
        """Return how many TCP segments were sent for a second time from inside, since the namespace was made."""
        return resent_segments(tell(*self.command, "cat", "/proc/net/snmp"))


@contextmanager
def namespace(number: int, how: How) -> Iterator[Namespace]:
    """Make a network namespace whose only link delays each frame by ``DELAY`` and loses ``LOSS`` of them, both ways.

    number: 0 to 255, its place in the network. how: by netem at both ends of a pair of devices, or by a switch in user
    space that carries frames between two of them.

    Raises CalledProcessError or OSError where this is not possible.
    """
    name, ours, theirs = f"fedmoe-{number}", f"fmo{number}", f"fmi{number}"
    inside = ["ip", "netns", "exec", name]
    with ExitStack() as stack:
        tell("ip", "netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
        wires: tuple[Wire, ...] = ()
        if how == "switch":
            wires = stack.enter_context(lossy_link((theirs, ours), DELAY, LOSS, number))
            tell("ip", "link", "set", theirs, "netns", name)
        else:
            tell("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
            stack.callback(subprocess.run, ["ip", "link", "del", ours], capture_output=True, check=False)
            impair = f"root netem delay {DELAY * 1000:.0f}ms loss {LOSS:.0%}".split()
            tell("tc", "qdisc", "add", "dev", ours, *impair)
            tell(*inside, "tc", "qdisc", "add", "dev", theirs, *impair)
        outside = NETWORK.format(number, 1)
        tell("ip", "addr", "add", f"{outside}/24", "dev", ours)
        tell("ip", "link", "set", ours, "up")
        tell(*inside, "ip", "addr", "add", f"{NETWORK.format(number, 2)}/24", "dev", theirs)
        for device in (theirs, "lo"):  # the node and its client app talk over the namespace's own loopback
            tell(*inside, "ip", "link", "set", device, "up")
        yield Namespace(name, outside, wires)


def why_not(how: How) -> str:
    """Return why such namespaces cannot be had here, "" if they can."""
    needed = ("ip", "tc") if how == "netem" else ("ip",)
    if missing := [tool for tool in needed if shutil.which(tool) is None]:
        return f"there is no '{missing[0]}'"
    if os.geteuid():
        return "not root"
    if how == "switch" and not TUN.exists():
        return f"there is no {TUN}"
    try:
        with namespace(99, how):
            return ""
    except subprocess.CalledProcessError as error:
        return f"'{' '.join(error.cmd)}' says: {error.stderr.strip() or f'status {error.returncode}'}"
    except OSError as error:
        return f"{TUN}: {error.strerror}"


def resent_segments(snmp: str) -> int:
    """Return ``RetransSegs`` of the text of ``/proc/net/snmp``: for each protocol a line of names and one of values."""
    names, values = (line.split() for line in snmp.splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


def tell(*words: str) -> str:
    """Run a command of the system and return what it says; raises CalledProcessError."""
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout
