"""The process that trains the windows of each round's cohort centrally, in large batches: the arithmetic alone.

Packing windows and drawing negatives is left out of its time, so that what is left is what no engine can do without:
forward, backward and a step, with as many threads as torch chooses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

from benchmarks.speed.report import Report, given_plan
from data.dataset import Dataset
from data.registry import load_dataset
from data.sampling import training_part
from fedmoe.settings import Settings
from fedmoe_client.learning.batches import WindowBatch
from fedmoe_client.learning.objective import objective
from fedmoe_client.learning.training import draw_steps, make_optimizer
from model.build import build_model
from model.residual_moe import ResidualMoE

BATCH_SIZES = (64, 128, 256)  # windows; the fastest on the first cohort is used for the others


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
        begun_and_ended = [train(model, settings, windows, size) for size in sizes]
        best = min(range(len(sizes)), key=[ended - begun for begun, ended in begun_and_ended].__getitem__)
        report.add(*begun_and_ended[best])
        sizes = sizes[best : best + 1]
    report.write()


def client_windows(dataset: Dataset, settings: Settings, server_round: int, client: int) -> WindowBatch:
    """Return the windows and negatives that a client of the federation trains on in its first epoch of a round."""
    items = training_part(dataset.interactions.history(client))
    steps = draw_steps(items, dataset.interactions.num_items, settings, client, server_round, torch.device("cpu"))
    return joined(steps.batches[: len(steps.batches) // settings.training.local_epochs])


def joined(batches: Sequence[WindowBatch]) -> WindowBatch:
    """Return several batches as one."""
    negatives = [batch.negatives for batch in batches if batch.negatives is not None]
    return WindowBatch(
        torch.cat([batch.context for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        torch.cat(negatives) if negatives else None,
    )


def parts(batch: WindowBatch, size: int) -> Iterator[WindowBatch]:
    """Cut a batch into batches of at most ``size`` windows."""
    for start in range(0, len(batch.targets), size):
        cut = slice(start, start + size)
        negatives = None if batch.negatives is None else batch.negatives[cut]
        yield WindowBatch(batch.context[cut], batch.targets[cut], negatives)


def train(model: ResidualMoE, settings: Settings, windows: WindowBatch, size: int) -> tuple[float, float]:
    """Make one pass over windows in batches of ``size``; return when it began and ended."""
    optimizer = make_optimizer(model, settings.training, settings.training.learning_rate)
    model.train()
    begun = time.time()
    for batch in parts(windows, size):
        optimizer.zero_grad()
        objective(model, batch, settings.training).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return begun, time.time()


if __name__ == "__main__":
    main()
