"""The optimiser of local training, new in each round, and what is done to gradients before its step."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from fedmoe.settings import TrainingSettings
from model.residual_moe import ResidualMoE


class Optimizer(Protocol):
    """What local training asks of an optimiser: that of ``torch.optim``, or ``LocalSGD``."""

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> object:
        """Change the parameters by their gradients."""


class LocalSGD:
    """Torch's SGD, by the function that ``torch.optim.SGD`` calls too, without its class.

    The class imports what ``torch.compile`` is made of at its first use: some two seconds and 70 MB in each process
    that has clients.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Tensor], float]], learning_rate: float, momentum: float) -> None:
        """groups: parameters, and how much they decay."""
        self._groups: list[tuple[list[Tensor], float, list[Tensor | None]]] = [
            (list(parameters), decay, [None] * len(parameters)) for parameters, decay in groups
        ]
        self._learning_rate, self._momentum = learning_rate, momentum

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameters, _, _ in self._groups:
            for each in parameters:
                each.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take a step along the gradients; a parameter without one stays."""
        for parameters, decay, velocities in self._groups:
            places = [place for place, each in enumerate(parameters) if each.grad is not None]
            moving = [velocities[place] for place in places]
            sgd(
                [parameters[place] for place in places],
                [grad for place in places if (grad := parameters[place].grad) is not None],
                moving,
                weight_decay=decay,
                momentum=self._momentum,
                lr=self._learning_rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            for place, velocity in zip(places, moving, strict=True):
                velocities[place] = velocity


def make_optimizer(model: ResidualMoE, training: TrainingSettings, learning_rate: float) -> Optimizer:
    """Return a new optimiser. Only weight matrices decay: a decayed item row would move without being trained."""
    return optimizer_over(dict(model.named_parameters()), decayed(model), training, learning_rate)


@lru_cache(maxsize=1)
def decayed(model: ResidualMoE) -> set[str]:
    """Return the names of the parameters that decay."""
    embeddings = {id(parameter) for parameter in model.items.parameters()}
    return {name for name, each in model.named_parameters() if each.dim() > 1 and id(each) not in embeddings}


def optimizer_over(
    parameters: Mapping[str, Tensor], decay: Collection[str], training: TrainingSettings, learning_rate: float
) -> Optimizer:
    """Return a new optimiser of named parameters, of which those in ``decay`` are decayed."""
    matrices = [each for name, each in parameters.items() if name in decay]
    others = [each for name, each in parameters.items() if name not in decay]
    if training.optimizer == "sgd":
        return LocalSGD([(matrices, training.weight_decay), (others, 0.0)], learning_rate, training.momentum)
    adam = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return adam(groups, lr=learning_rate)


def clip_gradients(parameters: Mapping[str, Tensor], training: TrainingSettings) -> float:
    """Clip the gate's gradient, then the whole gradient's norm; return the gate's gradient as it was."""
    gate = parameters.get("gate.value")
    gate_gradient = 0.0
    if gate is not None and gate.grad is not None:
        gate_gradient = float(gate.grad)
        if training.clip_gate:
            gate.grad.clamp_(-training.clip_gate, training.clip_gate)
    if training.clip_norm:
        nn.utils.clip_grad_norm_(parameters.values(), training.clip_norm)
    return gate_gradient
