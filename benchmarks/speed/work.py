"""The plan and the report of a measured process; run by itself, it trains the windows of each cohort centrally.

The time of central training leaves out packing windows and drawing negatives. It counts what every engine has to do:
forward, backward and a step, in large batches, with all threads of torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data.dataset import Dataset
from data.registry import load_dataset
from data.sampling import training_part
from fedmoe.loading import settings_from
from fedmoe.settings import Settings
from fedmoe_client.learning.training import decayed, draw_steps, optimizer_over
from model.build import build_model
from model.losses import WindowBatch, joined, objective
from model.residual_moe import ResidualMoE

BATCH_SIZES = (64, 128, 256)  # windows; the fastest on the first cohort is used for the others


def given_plan() -> tuple[Settings, int, list[list[int]]]:
    """Return settings, number of rounds and cohorts of the plan, whose file is this process's first argument."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return settings_from(plan["settings"]), plan["rounds"], plan["cohorts"]


class Report:
    """When the process was ready, everything imported, and each of its rounds, the cold one first; Unix times in s."""

    def __init__(self) -> None:
        self.ready = time.time()
        self.rounds: list[tuple[float, float, int, int]] = []

    def add(self, begun: float, ended: float, bytes_down: int = 0, bytes_up: int = 0) -> None:
        """Add a round; the bytes are those of all its messages, 0 where none travel."""
        self.rounds.append((begun, ended, bytes_down, bytes_up))

    def write(self) -> None:
        """Write all into the file that is this process's second argument."""
        Path(sys.argv[2]).write_text(json.dumps(vars(self)), encoding="utf-8")


def client_windows(dataset: Dataset, settings: Settings, server_round: int, client: int) -> WindowBatch:
    """Return the windows and negatives that a client of the federation trains on in its first epoch of a round."""
    items = training_part(dataset.interactions.history(client))
    steps = draw_steps(items, dataset.negatives, settings, client, server_round, torch.device("cpu"))
    return joined(steps.batches[: len(steps.batches) // settings.training.local_epochs])


def parts(batch: WindowBatch, size: int) -> Iterator[WindowBatch]:
    """Cut a batch into batches of at most ``size`` windows."""
    for start in range(0, len(batch.targets), size):
        cut = slice(start, start + size)
        negatives = None if batch.negatives is None else batch.negatives[cut]
        yield WindowBatch(batch.context[cut], batch.targets[cut], negatives)


def main() -> None:
    """Train the windows of each round's cohort."""
    torch.manual_seed(0)  # dropout
    settings, _, cohorts = given_plan()
    report = Report()
    dataset = load_dataset(settings)
    model = build_model(settings, dataset)
    sizes: Sequence[int] = BATCH_SIZES
    for number, cohort in enumerate(cohorts, start=1):
        windows = joined([client_windows(dataset, settings, number, client) for client in cohort])
        if number == 1:
            train(model, settings, joined(list(parts(windows, sizes[0]))[:2]), sizes[0])  # warms torch up
        times = [train(model, settings, windows, size) for size in sizes]
        best = min(range(len(sizes)), key=[ended - begun for begun, ended in times].__getitem__)
        report.add(*times[best])
        sizes = sizes[best : best + 1]
    report.write()


def train(model: ResidualMoE, settings: Settings, windows: WindowBatch, size: int) -> tuple[float, float]:
    """Make one pass over windows in batches of ``size``; return when it began and ended."""
    optimizer = optimizer_over(
        dict(model.named_parameters()), decayed(model), settings.training, settings.training.learning_rate
    )
    model.train()
    begun = time.time()
    for batch in parts(windows, size):
        optimizer.zero_grad()
        objective(model, batch, settings.training)[0].total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return begun, time.time()


if __name__ == "__main__":
    main()
