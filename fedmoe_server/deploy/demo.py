"""``python -m fedmoe_server demo``: a federation with real histories on this machine, from nothing to recommendations.

The users of MovieLens-100K are spread over a handful of clients, each of which gets a folder with the histories of its
own users alone. Server and clients are programs of their own, which speak gRPC over TLS, as in any deployment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data.dataset import Dataset
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings
from fedmoe.settings import Settings
from fedmoe_server.deploy.one_machine import OneMachine
from fedmoe_server.report.progress import duration
from fedmoe_server.report.run_folder import add_baseline, federated_metrics

# A client has hundreds of users and trains on all of them, so few rounds do, and their plain mean is the new model. Its
# update has a norm of 6 at first, and what secure aggregation cuts must be longer.
SETTINGS = (
    "ml-100k name=demo modalities.attributes=null num_rounds={rounds} client_fraction=1 min_clients={clients} "
    "evaluate_every=0 warmup_rounds={rounds} warmup=all shared=all strategy=fedavg privacy.update_norm=20"
)
WATCHED = 5  # films shown of the user's history


def demo(given: argparse.Namespace, extra: list[str]) -> int:
    """Run the demonstration; whatever happens, nothing of it is left running."""
    words = [*SETTINGS.format(rounds=given.rounds, clients=given.clients).split(), *given.words]
    settings = load_settings(words)[0]
    dataset = load_dataset(settings)
    if not 1 <= given.clients <= dataset.interactions.num_users:
        raise FedMoEError(f"--clients {given.clients} must be between 1 and {dataset.interactions.num_users}")
    with tempfile.TemporaryDirectory(prefix="fedmoe-demo-") as temporary:
        root = given.keep or Path(temporary)
        if root.exists() and any(root.iterdir()) and given.keep is not None:
            raise FedMoEError(f"--keep {root} must be a new folder")
        root.mkdir(parents=True, exist_ok=True)
        machine = OneMachine(root.absolute(), words)
        try:
            return _shown(machine, dataset, settings, given.clients)
        finally:
            print("taking everything down", flush=True)
            machine.down()


def _shown(machine: OneMachine, dataset: Dataset, settings: Settings, clients: int) -> int:
    started = time.monotonic()
    users = dataset.interactions.num_users
    print(f"{users} users of MovieLens-100K, {clients} clients with the histories of about {users // clients} each")
    silos = {client: _write_silo(machine.root, dataset, client, clients) for client in range(clients)}
    machine.up(silos)
    print(f"server and {clients} clients are connected after {duration(time.monotonic() - started)}", flush=True)
    if subprocess.run(machine.run_command(), check=False).returncode:
        raise FedMoEError("the run failed: see the lines above")
    (run_dir,) = machine.runs.iterdir()
    _compare(run_dir, settings)
    _recommend(machine, dataset, silos[0])
    print(f"\nall that in {duration(time.monotonic() - started)}")
    return 0


def _write_silo(root: Path, dataset: Dataset, client: int, clients: int) -> Path:
    """Write the histories of every ``clients``-th user, a file for each, and return their folder."""
    known, folder = dataset.interactions, root / f"histories-{client}"
    folder.mkdir()
    for user in range(client, known.num_users, clients):
        items = known.item_ids[known.history(user)]
        (folder / f"user-{known.user_ids[user]}.txt").write_text("".join(f"{item}\n" for item in items), "utf-8")
    return folder


def _compare(run_dir: Path, settings: Settings) -> None:
    """Print the run's figures beside those of ranking by popularity, which no training is needed for."""
    command = [sys.executable, "-m", "fedmoe_client.learning.popularity"]
    answer = subprocess.run(command, input=settings.model_dump_json(), capture_output=True, text=True, check=True)
    popular = json.loads(answer.stdout)
    add_baseline(run_dir, "popularity", popular)
    own = federated_metrics(run_dir)["federated, global"]
    print("\ntest, ranked among all films that the user has not met    HR@10   NDCG@10")
    rows = (("popularity", popular["test"]), ("the federation", own["test"]))
    for name, metrics in rows:
        print(f"{name:<54}{metrics['hr@10']:>10.4f}{metrics['ndcg@10']:>10.4f}")


def _recommend(machine: OneMachine, dataset: Dataset, silo: Path) -> None:
    """Print what client 0 recommends to its first user, on its own machine, after what the user has watched."""
    file = sorted(silo.glob("*.txt"))[0]
    numbers = {item: number for number, item in enumerate(dataset.interactions.item_ids.tolist())}
    latest = file.read_text("utf-8").split()[-WATCHED:]
    print(f"\n{file.stem} of client 0 watched last: {'; '.join(_titles(dataset, [numbers[item] for item in latest]))}")
    print("client 0 recommends, without asking anybody:")
    print(machine.client(0, "recommend", "--top", 10, "--user", file.stem).rstrip())


def _titles(dataset: Dataset, items: Sequence[int]) -> list[str]:
    return [str(item) if dataset.titles is None else dataset.titles[item] for item in items]
