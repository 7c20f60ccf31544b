"""Three real clients behind slow, lossy links, beside the same run over loopback: ``python -m benchmarks.slow_links``.

Each client is in a network namespace of its own (root, Linux with ``ip``) with one link to the server, which delays
every frame by 100 ms and loses 2% of them, in each direction: a round trip takes 200 ms. ``--how netem`` has the kernel
do so, ``--how switch`` a switch in user space between TAP devices, for kernels without netem; ``--how auto`` takes
netem where it works, else the switch. TCP sees delay and loss either way, and the script says how much of both.

Exit status: 0 the final parameters are the same bits as over loopback, 1 they are not, 77 no such links here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.namespaces import How, Namespace, namespace, tell, why_not
from fedmoe.deployment.ports import free_port

CLIENTS = 3
SETTINGS = (
    "quick data.synthetic.users=3 client_fraction=1 warmup_rounds=2 evaluate_every=0 checkpoint_every=5 num_rounds=5 "
    "min_clients=3"
).split()
SKIPPED = 77


def main(words: Sequence[str]) -> int:
    """Run both federations, print their times, compare their parameters; return the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.slow_links", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--how", choices=("auto", "netem", "switch"), default="auto")
    given = parser.parse_args(list(words))
    choices: list[How] = ["netem", "switch"] if given.how == "auto" else [given.how]
    reasons = {how: why_not(how) for how in choices}
    possible = [how for how in choices if not reasons[how]]
    for how, reason in reasons.items():
        print(f"{how}: {reason or 'possible'}", flush=True)
    if not possible:
        print("skipped: no network namespaces with slow links can be had here")
        return SKIPPED
    root = Path(tempfile.mkdtemp(prefix="fedmoe-links-"))
    try:
        direct = federation(root / "direct", None)
        slow = federation(root / "slow", possible[0])
        same = direct == slow
        print(f"final parameters are {'the same bits' if same else 'DIFFERENT'}")
        return 0 if same else 1
    finally:
        shutil.rmtree(root, ignore_errors=True)


def federation(root: Path, how: How | None) -> dict[str, bytes]:
    """Run a federation and return its checkpoint's files. how: kind of the clients' links, None for loopback."""
    root.mkdir()
    port, server = free_port(), root / "server"
    with ExitStack() as stack:
        spaces = [] if how is None else [stack.enter_context(namespace(client, how)) for client in range(CLIENTS)]
        for space in spaces:
            print(told(space), flush=True)
        hosts = [space.outside for space in spaces] or ["127.0.0.1"] * CLIENTS
        names = [word for host in hosts for word in ("--name", host)]
        listen = ("--address", f"0.0.0.0:{port}", "--control", f"127.0.0.1:{free_port()}")
        stack.callback(run, "fedmoe_server", "down", "--dir", server)
        run("fedmoe_server", "up", "--dir", server, *listen, *names)
        for client, host in enumerate(hosts):
            folder = root / f"client-{client}"
            run("fedmoe_client", "enrol", "--dir", folder, "--client-id", client)
            run("fedmoe_server", "admit", "--dir", server, folder / "client.pub")
            words = ("--server", f"{host}:{port}", "--ca", server / "ca.crt", "--user", client)
            stack.callback(run, "fedmoe_client", "down", "--dir", folder)
            run("fedmoe_client", "up", "--dir", folder, *words, inside=spaces[client].command if spaces else ())
        started = time.monotonic()
        run("fedmoe_server", "run", "--dir", server, *SETTINGS, f"save_dir={root / 'runs'}")
        print(f"{how or 'loopback'}: {time.monotonic() - started:.0f} s for 5 rounds and the evaluation", flush=True)
        for space in spaces:
            print("; ".join([f"{space.name}: {space.resent()} TCP segments sent for a second time", *lost(space)]))
    (run_dir,) = (root / "runs").iterdir()
    files = sorted((run_dir / "checkpoints").glob("round-*/*.safetensors"))
    return {file.name: file.read_bytes() for file in files}


def told(space: Namespace, count: int = 500) -> str:
    """Return what ``count`` echo requests say of a namespace's link: it bites if they take long and some are lost."""
    words = ("-m", "benchmarks.echo", space.outside, "--count", str(count))
    found = json.loads(tell(*space.command, sys.executable, *words))
    lost = 1 - found["answered"] / found["sent"]
    return (
        f"{space.name}: round trip {found['least']:.1f} ms at least, {found['median']:.1f} ms in the median; "
        f"{lost:.1%} of {found['sent']} echo requests without an answer"
    )


def lost(space: Namespace) -> list[str]:
    """Return how many frames a switch has lost on their way to the server and back; the kernel does not say."""
    ways = zip(("to the server", "from it"), space.wires, strict=False)
    return [f"{wire.lost:,} of {wire.lost + wire.carried:,} frames {way} lost" for way, wire in ways]


def run(module: str, *words: object, inside: Sequence[str] = ()) -> None:
    """Run one of the commands; end the program with what it says if it fails."""
    command = [*inside, sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
