"""The process that trains the windows of each round's cohort centrally, in large batches: the arithmetic alone.

Packing the windows and drawing the negatives is left out of its time, so that what is left is what no engine can do
without: forward, backward and a step, with as many threads as torch chooses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch

from benchmarks.engine_report import Report, Round, phase_of_rounds, plan_and_place
from benchmarks.engine_windows import client_batches, joined, parts
from data.registry import Dataset, load_dataset
from fedmoe.settings import Settings
from fedmoe_client.learning.batches import WindowBatch
from fedmoe_client.learning.objective import objective
from fedmoe_client.learning.training import make_optimizer
from model.build import build_model
from model.residual_moe import ResidualMoE

BATCH_SIZES = (64, 128, 256)  # windows; the fastest on the first cohort is used for the others


def main(words: Sequence[str]) -> None:
    """Train a plan's cohorts."""
    settings, phases, cohorts, place = plan_and_place(words)
    report = Report()
    dataset = load_dataset(settings.data, settings.seed)
    model = build_model(settings.model, dataset, settings.seed)
    windows = _windows(dataset, settings, 1, cohorts[0])
    train(model, settings, joined(list(parts(windows, BATCH_SIZES[0]))[:2]), BATCH_SIZES[0])  # warms torch up
    first = {size: train(model, settings, windows, size) for size in BATCH_SIZES}
    best = min(first, key=lambda size: first[size].seconds)
    report.notes |= {"batch size": best, "windows": len(windows.targets)}
    for number, ((phase, clients), cohort) in enumerate(zip(phase_of_rounds(phases), cohorts, strict=True), start=1):
        done = first[best] if number == 1 else train(model, settings, _windows(dataset, settings, number, cohort), best)
        report.rounds.append(Round(phase, clients, done.begun, done.ended))
    report.write(place)


def train(model: ResidualMoE, settings: Settings, windows: WindowBatch, size: int) -> Round:
    """Make one pass over windows in batches of ``size`` and return it as a round."""
    optimizer = make_optimizer(model, settings.training, settings.training.learning_rate)
    model.train()
    begun = time.time()
    for batch in parts(windows, size):
        optimizer.zero_grad()
        objective(model, batch, settings.training).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Round(0, 0, begun, time.time())


def _windows(dataset: Dataset, settings: Settings, server_round: int, cohort: Sequence[int]) -> WindowBatch:
    return joined([b for client in cohort for b in client_batches(dataset, settings, server_round, client)])


if __name__ == "__main__":
    torch.manual_seed(0)  # dropout
    main(sys.argv[1:])
