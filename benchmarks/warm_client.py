"""A warm client beside a plain one in one real deployment on this machine: ``python -m benchmarks.warm_client``.

One server and two clients, over gRPC with TLS and authentication. One client keeps a resident process, the other works
as Flower does by itself, in a new process for each message. Measured is the time between "Received successfully" and
"Sending" in the log of each node: Flower's start of a process, the message carried out, and the answer handed back.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from data.registry import load_dataset
from fedmoe.loading import load_settings

SETTINGS = ("client_fraction=1.0", "warmup_rounds=1", "evaluate_every=0", "min_clients=2")
EVENT = re.compile(r"(Received successfully|Sending: (\w+) message)")
LOOK_SECONDS = 0.01


class Stopwatch(threading.Thread):
    """Reads a growing log and takes the time from each message's arrival to its answer, by message type."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[str, list[float]] = {}
        self._log = log
        self._over = threading.Event()

    def run(self) -> None:
        """Follow the log until ``stop``."""
        begun = 0.0
        with self._log.open(encoding="utf-8", errors="replace") as log:
            while not self._over.is_set():
                if not (line := log.readline()):
                    time.sleep(LOOK_SECONDS)
                elif (found := EVENT.search(line)) and found[2]:
                    self.seconds.setdefault(found[2], []).append(time.perf_counter() - begun)
                elif found:
                    begun = time.perf_counter()

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self.join()


def measure(folder: Path, words: Sequence[str], port: int) -> dict[str, dict[str, list[float]]]:
    """Run a federation of two clients and return seconds by client and message type.

    words: settings, as of ``sim.py``; port: the first of four that are used.
    """
    settings, _ = load_settings(words)
    known = load_dataset(settings.data, settings.seed).interactions
    address = f"127.0.0.1:{port}"
    server = ["--dir", str(folder / "server")]
    _command("fedmoe_server", "up", *server, "--address", address, "--control", f"127.0.0.1:{port + 1}")
    watches: dict[str, Stopwatch] = {}
    try:
        _command("fedmoe_server", "catalogue", *words, "--out", str(folder / "catalogue"))
        for user, name in enumerate(("warm", "plain")):
            client = ["--dir", str(folder / name)]
            history = folder / f"{name}.txt"
            history.write_text("".join(f"{item}\n" for item in known.item_ids[known.history(user)]))
            _command("fedmoe_client", "enrol", *client, "--client-id", str(user))
            _command("fedmoe_server", "admit", *server, str(folder / name / "client.pub"))
            way = ["--plain"] if name == "plain" else []
            joined = ["--server", address, "--ca", str(folder / "server" / "ca.crt"), "--port", str(port + 2 + user)]
            shared = ["--history", str(history), "--catalogue", str(folder / "catalogue")]
            _command("fedmoe_client", "up", *client, *joined, *shared, *way)
            watches[name] = Stopwatch(folder / name / "logs" / "supernode.log")
            watches[name].start()
        _command("fedmoe_server", "run", *server, *words, *SETTINGS, f"save_dir={folder / 'runs'}")
    finally:
        for name, watch in watches.items():
            watch.stop()
            _command("fedmoe_client", "down", "--dir", str(folder / name))
        _command("fedmoe_server", "down", *server)
    return {name: watch.seconds for name, watch in watches.items()}


def _command(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], check=True)


def main(words: Sequence[str]) -> None:
    """Measure and print medians."""
    parser = argparse.ArgumentParser("python -m benchmarks.warm_client", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=28520, help="the first of four ports (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("settings", nargs="*", default=["ml-100k"], help="as of sim.py (default: ml-100k)")
    given = parser.parse_args(list(words))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), [*given.settings, f"num_rounds={given.rounds}"], given.port)
    print(f"\n{'message':<10}" + "".join(f"{name + ', s':>12}" for name in found) + f"{'ratio':>8}")
    for kind in found["plain"]:
        medians = {name: statistics.median(seconds[kind]) for name, seconds in found.items()}
        row = "".join(f"{median:>12.2f}" for median in medians.values())
        print(f"{kind:<10}{row}{medians['warm'] / medians['plain']:>8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
