"""A federation of real processes, in a folder of the test: one server, and clients with their own histories."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from fedmoe.deployment.folder import TAG
from fedmoe.deployment.ports import free_port

ROOT = Path(__file__).parents[2]
# Tests that are not about secure aggregation go without it: it has five messages in place of each one.
SMALL = (
    "privacy.secure_aggregation=off "
    "dataset=synthetic data.synthetic.users=3 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=1 warmup_rounds=2 evaluate_every=0 "
    "num_rounds=5 strategy=fedadam min_clients=3 round_deadline=120 wait_seconds=120 "
    # What a simulation would choose by the number of rounds.
    "strategy_parameters.eta=0.005 item_representation=id local_epochs=1 max_windows=2"
).split()


class Federation:
    """Runs the commands as a person does, with a home and a temporary folder that must stay empty."""

    def __init__(self, root: Path, clients: int = 3, words: Sequence[str] = tuple(SMALL)) -> None:
        self.root = root
        self.words = list(words)  # the settings of the catalogue and the histories
        self.clients = clients
        self.search_path = [ROOT]
        ports: set[int] = set()
        while len(ports) < 2:
            ports.add(free_port())
        self.address, self.control = (f"127.0.0.1:{port}" for port in ports)
        self.server_dir = root / "server"
        self.runs = root / "runs"
        for folder in ("home", "tmp"):
            (root / folder).mkdir()

    @property
    def authority(self) -> Path:
        return self.server_dir / "ca.crt"

    def client_dir(self, client: int) -> Path:
        return self.root / f"client-{client}"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in ("FEDMOE_CACHE", "FLWR_HOME", TAG)}
        own = {
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "PYTHONPATH": ":".join(map(str, self.search_path)),
        }
        return kept | own | more

    def command(self, module: str, *words: object, status: int | None = 0, timeout: float = 280, **more: str) -> str:
        """Run a command to its end and return what it prints; its exit status must be ``status``."""
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=self.root,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        said = done.stdout + done.stderr
        assert status is None or done.returncode == status, (
            f"{module} {words}: {done.returncode}\n{said}\n{self.logs()}"
        )
        return said

    def server(self, *words: object, **options: Any) -> str:
        return self.command("fedmoe_server", *words, "--dir", self.server_dir, **options)

    def client(self, client: int, *words: object, **options: Any) -> str:
        return self.command("fedmoe_client", *words, "--dir", self.client_dir(client), **options)

    def start_run(self, *words: object) -> subprocess.Popen[str]:
        """Submit a run and go on while it runs."""
        return subprocess.Popen(
            [sys.executable, "-m", "fedmoe_server", "run", *map(str, words), "--dir", str(self.server_dir)],
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def up(
        self,
        tap: Callable[[int], dict[str, str]] = lambda client: {},
        more_words: Callable[[int], Sequence[str]] = lambda client: (),
    ) -> None:
        """Start the server and all clients: each with its own history, and the catalogue.

        tap: returns more of a client's environment; more_words: more options of its ``up``.
        """
        self.server("up", "--address", self.address, "--control", self.control)
        self.server("catalogue", *self.words, "--out", self.root / "catalogue")
        self.write_histories()
        for client in range(self.clients):
            self.client(client, "enrol", "--client-id", client)
        self.server("admit", *(self.client_dir(client) / "client.pub" for client in range(self.clients)))
        for client in range(self.clients):
            assert "connected to" in self.client_up(client, *more_words(client), **tap(client))

    def client_up(self, client: int, *more_words: str, **more: Any) -> str:
        words = ("--server", self.address, "--ca", self.authority, "--history", self.history(client), *more_words)
        return self.client(client, "up", *words, "--catalogue", self.root / "catalogue", **more)

    def history(self, client: int) -> Path:
        return self.root / f"history-{client}.txt"

    def write_histories(self) -> None:
        """Write what the simulation's users have met, one file for each client."""
        from data.registry import load_dataset
        from fedmoe.loading import load_settings

        settings = load_settings(self.words)[0]
        known = load_dataset(settings).interactions
        for user in range(self.clients):
            items = known.item_ids[known.history(user)]
            self.history(user).write_text("".join(f"{item}\n" for item in items), encoding="utf-8")

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the server and the clients."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(TAG, "").startswith(str(self.root)):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def kill_client(self, client: int, known: Iterable[psutil.Process] = ()) -> None:
        """Kill all of a client's processes (SIGKILL), the supervisor first; those that are known before a search."""
        for process in (*known, *self.processes_of(client)):
            with contextlib.suppress(psutil.Error):  # it has ended by itself
                process.kill()

    def processes_of(self, client: int) -> Iterator[psutil.Process]:
        """Yield a client's processes, the supervisor first."""
        for process in sorted(self.processes(), key=lambda process: process.pid):
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(TAG) == str(self.client_dir(client)):
                    yield process

    def process(self, client: int | None, program: str) -> psutil.Process:
        """Return the process of a client (None: of the server) whose command names a program."""
        folder = self.server_dir if client is None else self.client_dir(client)
        for process in self.processes():
            try:
                if process.environ()[TAG] == str(folder) and any(program in word for word in process.cmdline()):
                    return process
            except (psutil.Error, OSError, KeyError):
                continue
        raise AssertionError(f"no process '{program}' in {folder}")

    def down(self) -> None:
        for client in range(self.clients):
            self.client(client, "down", status=None)
        if self.server_dir.exists():
            self.server("down", status=None)

    def run_dir(self) -> Path:
        """Return the folder of the latest run."""
        return sorted(self.runs.iterdir())[-1]

    def logs(self) -> str:
        """Return the end of every log, for a failed test."""
        files = sorted(self.root.glob("*/logs/*.log"))
        return "\n".join(f"--- {file}\n" + "\n".join(file.read_text().splitlines()[-25:]) for file in files)


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> float:
    """Wait until something holds; return the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - started


def final_arrays(run_dir: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a run's last checkpoint: the model's, the best one's, the strategy's."""
    checkpoint = sorted((run_dir / "checkpoints").glob("round-*"))[-1]
    return {
        f"{file.name}/{name}": array
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_bits(deployed: Path, simulated: Path) -> None:
    """Compare two runs: all final arrays, what training reported in each round, and the results."""
    found, wanted = final_arrays(deployed), final_arrays(simulated)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if wanted[name].tobytes() != found[name].tobytes()] == []
    assert [row["train"] for row in records(deployed)] == [row["train"] for row in records(simulated)]
    results = [json.loads((each / "result.json").read_text()) for each in (deployed, simulated)]
    for split in ("validation", "test"):
        assert results[0][split] == results[1][split]


def simulated(root: Path, *more: str, words: Sequence[str] = SMALL, **environment: str) -> Path:
    """Run the same settings with sim.py and return the run folder."""
    given = [*words, *more, f"save_dir={root / 'simulated'}", "hosts=1", "engine=ray", "aggregate_in_hosts=false"]
    done = subprocess.run(
        [sys.executable, "sim.py", *given],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted((root / "simulated").iterdir())[-1]
