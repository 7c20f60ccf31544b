"""A federation of real processes on this machine, of clients with invented histories, that a benchmark can hurt."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.runs import job
from data.registry import load_dataset
from fedmoe.deployment.folder import TAG, Folder
from fedmoe.deployment.processes import recorded, running_supervisor
from fedmoe.errors import FedMoEError
from fedmoe.files import read_json
from fedmoe_server.deploy.one_machine import OneMachine
from fedmoe_server.deploy.server_folder import CONNECTION, ServerFolder
from fedmoe_server.report.run_folder import METRICS, read_records
from fedmoe_server.rounds.record import RoundRecord

SETTINGS = (
    "dataset=synthetic data.synthetic.users={clients} data.synthetic.items=200 dim=16 attention_dim=16 blocks=1 "
    "max_seq_len=20 memory_size=20 memory_refresh=10 num_negatives=50 client_fraction=1 warmup_rounds=2 "
    "evaluate_every=0 num_rounds={rounds} min_clients={clients}"
)
SILENT_SECONDS = 30.0  # without a sign of life, after which a part counts as dead at the end


class Federation:
    """A server and clients that train together; ``hurt`` kills one of their parts."""

    def __init__(self, root: Path, clients: int, rounds: int, words: Sequence[str] = ()) -> None:
        words = [*SETTINGS.format(clients=clients, rounds=rounds).split(), *words]
        self.machine = OneMachine(root, words)
        known = load_dataset(job(words)).interactions
        self.log = root / "run.log"  # what a person who follows the run reads; printed at the end
        self.histories = {}
        for user in range(clients):
            self.histories[user] = root / f"history-{user}.txt"
            items = known.item_ids[known.history(user)]
            self.histories[user].write_text("".join(f"{item}\n" for item in items), encoding="utf-8")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start everything; whatever happens in the block, nothing is left running."""
        try:
            self.machine.up(self.histories)
            yield
        finally:
            if self.log.exists():
                print(self.log.read_text(encoding="utf-8", errors="replace"), flush=True)
            self.machine.down()

    def start_run(self) -> subprocess.Popen[bytes]:
        """Submit the run and follow it in a process of its own."""
        with self.log.open("wb") as output:
            return subprocess.Popen(self.machine.run_command(), stdout=output, stderr=subprocess.STDOUT)

    def records(self) -> tuple[RoundRecord, ...]:
        """Return the rounds that are done."""
        files = list(self.machine.runs.glob(f"*/{METRICS}"))
        return read_records(files[0]) if files else ()

    def folder(self, client: int | None) -> Folder:
        """Return the folder of a client, or (None) of the server."""
        return Folder(self.machine.server_dir if client is None else self.machine.client_dir(client))

    def kill(self, client: int | None, part: str) -> None:
        """Kill (SIGKILL) a part: a program that the supervisor knows, ``supervisor`` or ``resident``."""
        folder = self.folder(client)
        if part == "supervisor":
            found = running_supervisor(folder)
        elif part == "resident":
            found = next(iter(self._residents(folder)), None)
        else:
            found = recorded(read_json(folder.supervisor)["programs"][part])
        if found is None:
            raise FedMoEError(f"there is no {part} in {folder.path} to kill")
        found.kill()

    def start_again(self, client: int | None) -> None:
        """Do what a service manager does after a supervisor was killed."""
        if client is None:
            self.machine.server_up()
        else:
            self.machine.client_up(client, self.histories[client])

    def hold_database(self, seconds: float) -> None:
        """Hold the lock of the server's database, so that nobody else writes."""
        with closing(sqlite3.connect(ServerFolder(self.machine.server_dir).database, timeout=60)) as database:
            database.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            database.rollback()

    def dead_parts(self) -> list[str]:
        """Return the parts that do not work: no process, no sign of life, or a node that the server does not see."""
        dead = []
        for client in (None, *self.histories):
            folder, who = self.folder(client), "server" if client is None else f"client {client}"
            if running_supervisor(folder) is None:
                dead.append(f"{who}: supervisor")
            for name, program in read_json(folder.supervisor, {}).get("programs", {}).items():
                beat = folder.logs / f"{name}.beat"
                silent = not beat.exists() or time.time() - beat.stat().st_mtime > SILENT_SECONDS
                if program["process"] is None or recorded(program) is None or silent:
                    dead.append(f"{who}: {name}")
        server = ServerFolder(self.machine.server_dir)
        nodes = {int(node["node-id"]): node for node in server.flwr("supernode", "list", CONNECTION)["nodes"]}
        offline = [each.client for each in server.admitted() if nodes[each.node]["status"] != "online"]
        return [*dead, *(f"client {client}: not online" for client in offline)]

    def memory(self) -> int:
        """Return the proportional set size of all processes of the federation, in bytes."""
        total = 0
        for process in psutil.process_iter():
            try:
                if process.environ().get(TAG, "").startswith(str(self.machine.root)):
                    total += process.memory_full_info().pss
            except (psutil.Error, OSError):
                continue
        return total

    def _residents(self, folder: Folder) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                own = process.environ().get(TAG) == str(folder.path.absolute())
                if own and "fedmoe_client.device.resident" in process.cmdline():
                    yield process
            except (psutil.Error, OSError):
                continue


def wait_for_round(federation: Federation, run: subprocess.Popen[bytes], number: int) -> None:
    """Return when so many rounds are done. Raises FedMoEError if the run ends before."""
    while len(federation.records()) < number:
        if run.poll() is not None:
            raise FedMoEError(f"the run ended with status {run.returncode} before round {number} was done")
        time.sleep(0.2)


def kept(path: Path, **figures: Any) -> None:
    """Add a line of figures to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")
