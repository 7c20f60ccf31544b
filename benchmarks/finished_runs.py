"""What a finished run left behind, for a benchmark to measure: its model, and the checkpoint that it is from."""

from __future__ import annotations

from pathlib import Path

from fedmoe_client.learning.workbench import Workbench
from fedmoe_server.rounds.checkpoints import Checkpoint, find_checkpoint, load_checkpoint
from fedmoe_server.rounds.record import list_arrays
from model.build import arrays_of


def load_chosen(bench: Workbench, run_dir: Path) -> Checkpoint:
    """Load the model that a run has chosen into a workbench of its settings; return the run's last checkpoint.

    Raises FedMoEError if the run has no checkpoint, or it is damaged or of another model.
    """
    checkpoint = load_checkpoint(find_checkpoint(run_dir), list_arrays(arrays_of(bench.model)))
    arrays, _ = checkpoint.state.chosen()
    bench.load({name: array.numpy() for name, array in arrays.items()})
    return checkpoint
