"""Clients without messages: the plain loop with which tests compare what comes out of a run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from data.registry import load_dataset
from data.sampling import Negatives, training_part
from fedmoe.loading import load_settings
from fedmoe.settings import Settings
from fedmoe_client.learning.additions import Proximal
from fedmoe_client.learning.training import LocalSteps, Outcome, clip_gradients, draw_steps, train_steps
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.private import NamedArrays
from model.losses import objective
from model.residual_moe import ResidualMoE

Gradients = Callable[[str, torch.nn.Parameter], torch.Tensor | float]


def bench_of(*words: str) -> Workbench:
    """Return the workbench of a command line's settings."""
    settings, _ = load_settings(list(words))
    return Workbench(settings, load_dataset(settings))


def local_sgd(
    bench: Workbench, start: NamedArrays, client: int, server_round: int, more: Gradients
) -> tuple[NamedArrays, LocalSteps]:
    """Return the model after a client's plain steps, and these; more: what is added to a gradient."""
    bench.load(start)
    items = training_part(bench.dataset.interactions.history(client))
    steps = draw_steps(items, bench.negatives, bench.settings, client, server_round, bench.device)
    bench.model.train()
    for batch in steps.batches:
        bench.model.zero_grad()
        objective(bench.model, batch, bench.settings.training)[0].total.backward()
        clip_gradients(bench.parameters, bench.settings.training)
        with torch.no_grad():
            for name, parameter in bench.parameters.items():
                gradient = 0.0 if parameter.grad is None else parameter.grad
                parameter -= bench.settings.training.learning_rate * (gradient + more(name, parameter))
    return bench.take(bench.names), steps


def train_locally(
    model: ResidualMoE,
    items: NDArray[np.int32],
    settings: Settings,
    client: int,
    server_round: int,
    proximal: Proximal | None = None,
) -> Outcome:
    """Draw a user's steps and train the whole model in place: what all other ways of training must agree with."""
    device = next(model.parameters()).device
    steps = draw_steps(items, Negatives(model.num_items), settings, client, server_round, device)
    return train_steps(model, steps, settings.training, server_round, [] if proximal is None else [proximal])
