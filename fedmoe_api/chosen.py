"""The model that a run has chosen, and what its simulated clients keep, from the run's last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data.dataset import Dataset
from fedmoe.settings import Settings
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.private import InContext, NamedArrays
from fedmoe_server.rounds.checkpoints import Checkpoint, find_checkpoint, load_checkpoint
from fedmoe_server.rounds.record import list_arrays
from fedmoe_server.rounds.strategy import aggregation_schedule
from model.build import arrays_of, parameter_names
from simulation.flower_runtime import records_from_bytes
from simulation.ray.client_files import CLIENTS_FILE, open_clients, read_clients


def load_chosen(run_dir: Path, settings: Settings, dataset: Dataset) -> tuple[Workbench, Checkpoint]:
    """Return the model that a run has chosen, in a workbench of its settings, and the run's last checkpoint.

    Raises FedMoEError if the run has no checkpoint, or it is damaged or of another model.
    """
    bench = Workbench(settings, dataset)
    checkpoint = load_checkpoint(find_checkpoint(run_dir), list_arrays(arrays_of(bench.model)))
    arrays, _ = checkpoint.state.chosen()
    bench.load({name: array.numpy() for name, array in arrays.items()})
    return bench, checkpoint


def private_names(bench: Workbench, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the parameters that are each client's own in the best round."""
    _, best_round = checkpoint.state.chosen()
    return aggregation_schedule(bench.settings, parameter_names(bench.model)).private_names(best_round)


def private_parameters(
    folder: Path, users: int, names: Sequence[str], wanted: Callable[[int], bool] = lambda _: True
) -> dict[int, NamedArrays]:
    """Return what clients keep under these names, by the client's number; without those that lack any.

    folder: the clients' private state in a checkpoint. wanted: of which clients.
    """
    kept = {}
    with open_clients(folder / CLIENTS_FILE) as file:
        for client, state in read_clients(file, users, wanted):
            own = InContext(records_from_bytes(state)).load()
            if names and all(name in own for name in names):
                kept[client] = {name: own[name] for name in names}
    return kept
