"""Three real clients behind slow, lossy links, beside the same run over loopback: ``python -m benchmarks.slow_links``.

``--how netem`` (root, Linux with ``ip`` and the kernel's netem): each client in a network namespace of its own, 100 ms
of delay and 2% of loss in each direction. ``--how proxy`` needs nothing: every client connects through a proxy in this
process that holds each piece of data for 100 ms, and 2% of them for 200 ms more, as long as TCP would take to notice a
loss; what is behind a held piece waits, as in TCP. The clients are in namespaces there too, where those can be had.
``--how auto`` takes netem where it works, else the proxy.

Exit status: 0 the final parameters are the same bits as over loopback, 1 they are not, 77 netem was asked for but is
not possible here.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deployment.ports import free_port

CLIENTS = 3
DELAY, LOSS, RETRANSMISSION = 0.1, 0.02, 0.2
SETTINGS = (
    "quick data.synthetic.users=3 client_fraction=1 warmup_rounds=2 evaluate_every=0 checkpoint_every=5 num_rounds=5 "
    "min_clients=3"
).split()
SKIPPED = 77
NETWORK = "10.213.{}.{}"


def main(words: Sequence[str]) -> int:
    """Run both federations, print their times, compare their parameters; return the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.slow_links", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--how", choices=("auto", "netem", "proxy"), default="auto")
    given = parser.parse_args(list(words))
    reason = why_not(impaired=True)
    if given.how == "netem" and reason:
        print(f"skipped: {reason}")
        return SKIPPED
    how = "proxy" if given.how == "proxy" or reason else "netem"
    spaces = not why_not(impaired=False)
    print(
        f"links: {how}, {'network namespaces' if spaces else 'no namespaces'}; netem: {reason or 'works'}", flush=True
    )
    root = Path(tempfile.mkdtemp(prefix="fedmoe-links-"))
    try:
        direct = federation(root / "direct", "loopback", spaces=False)
        slow = federation(root / "slow", how, spaces)
        same = direct == slow
        print(f"final parameters are {'the same bits' if same else 'DIFFERENT'}")
        return 0 if same else 1
    finally:
        shutil.rmtree(root, ignore_errors=True)


def federation(root: Path, how: str, spaces: bool) -> dict[str, bytes]:
    """Run a federation and return its checkpoint's files.

    how: ``loopback``, ``netem`` or ``proxy``; spaces: whether each client is in a network namespace.
    """
    root.mkdir()
    port, server = free_port(), root / "server"
    with ExitStack() as stack:
        inside: list[list[str]] = [[] for _ in range(CLIENTS)]
        hosts, ports = ["127.0.0.1"] * CLIENTS, [port] * CLIENTS
        if spaces:
            inside = [stack.enter_context(namespace(client, how == "netem")) for client in range(CLIENTS)]
            hosts = [NETWORK.format(client, 1) for client in range(CLIENTS)]
        if how == "proxy":
            ports = [stack.enter_context(proxy(port)) for _ in range(CLIENTS)]
        addresses = [f"{host}:{number}" for host, number in zip(hosts, ports, strict=True)]
        names = [word for host in hosts for word in ("--name", host)]
        listen = ("--address", f"0.0.0.0:{port}", "--control", f"127.0.0.1:{free_port()}")
        stack.callback(run, "fedmoe_server", "down", "--dir", server)
        run("fedmoe_server", "up", "--dir", server, *listen, *names)
        for client in range(CLIENTS):
            folder = root / f"client-{client}"
            run("fedmoe_client", "enrol", "--dir", folder, "--client-id", client)
            run("fedmoe_server", "admit", "--dir", server, folder / "client.pub")
            words = ("--server", addresses[client], "--ca", server / "ca.crt", "--user", client)
            stack.callback(run, "fedmoe_client", "down", "--dir", folder)
            run("fedmoe_client", "up", "--dir", folder, *words, inside=inside[client])
        started = time.monotonic()
        run("fedmoe_server", "run", "--dir", server, *SETTINGS, f"save_dir={root / 'runs'}")
        print(f"{how}: {time.monotonic() - started:.0f} s for 5 rounds and the evaluation", flush=True)
    (run_dir,) = (root / "runs").iterdir()
    files = sorted((run_dir / "checkpoints").glob("round-*/*.safetensors"))
    return {file.name: file.read_bytes() for file in files}


def run(module: str, *words: object, inside: Sequence[str] = ()) -> None:
    """Run one of the commands; end the program with what it says if it fails."""
    command = [*inside, sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def why_not(impaired: bool) -> str:
    """Return why network namespaces (with netem) cannot be had, "" if they can."""
    if os.name != "posix" or not all(map(shutil.which, ("ip", "tc"))):
        return "there is no 'ip' and 'tc'"
    if os.geteuid():
        return "not root"
    try:
        with namespace(99, impaired):
            return ""
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode().strip() or f"status {error.returncode}"
        return f"'{' '.join(error.cmd)}' says: {said}"


@contextmanager
def namespace(client: int, impaired: bool) -> Iterator[list[str]]:
    """Make a network namespace with one link to here; yield the words that run a command inside.

    impaired: whether the link has delay and loss, in each direction.
    """
    name, ours, theirs = f"fedmoe-{client}", f"fmo{client}", f"fmi{client}"
    inside = ["ip", "netns", "exec", name]
    impair = f"root netem delay {DELAY * 1000:.0f}ms loss {LOSS:.0%}".split()
    try:
        tell("ip", "netns", "add", name)
        tell("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        tell("ip", "addr", "add", f"{NETWORK.format(client, 1)}/24", "dev", ours)
        tell("ip", "link", "set", ours, "up")
        tell(*inside, "ip", "addr", "add", f"{NETWORK.format(client, 2)}/24", "dev", theirs)
        for device in (theirs, "lo"):  # the node and its client app talk over the namespace's own loopback
            tell(*inside, "ip", "link", "set", device, "up")
        if impaired:
            tell("tc", "qdisc", "add", "dev", ours, *impair)
            tell(*inside, "tc", "qdisc", "add", "dev", theirs, *impair)
        yield inside
    finally:
        subprocess.run(["ip", "link", "del", ours], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def tell(*words: str) -> None:
    """Run a command of the system; raises CalledProcessError."""
    subprocess.run(words, capture_output=True, check=True)


@contextmanager
def proxy(target: int) -> Iterator[int]:
    """Forward a port of this machine to ``target`` over a slow link; yield the port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(forward(reader, back), forward(there, writer))

    listening = asyncio.start_server(serve, "0.0.0.0", 0)
    server = asyncio.run_coroutine_threadsafe(listening, loop).result()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes in, each piece after its delay and never before an earlier one."""
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def take() -> None:
        while piece := await reader.read(1448):  # as much as a packet carries
            late = RETRANSMISSION if random.random() < LOSS else 0.0
            held.put_nowait((time.monotonic() + DELAY + late, piece))
        held.put_nowait((0.0, b""))

    taking = asyncio.create_task(take())
    try:
        while True:
            due, piece = await held.get()
            if not piece:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.write(piece)
            await writer.drain()
    except OSError:  # the other end has gone
        pass
    finally:
        taking.cancel()
        writer.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
