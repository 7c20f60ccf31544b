"""Training many clients at once: their windows go through one pass of the stacked model, each with its own parameters.

The clients of a stack take the same number of steps with the same numbers of windows; everything else is as it is for
a client alone: its batches, its optimiser, its clipped gradient, its report. Dropout draws from the stack's generator.

Shapes: C clients, W windows of a client in a step, R touched items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from fedmoe.settings import TrainingSettings
from fedmoe_client.learning.batches import WindowBatch
from fedmoe_client.learning.objective import Losses, WindowScores, losses_of, window_scores
from fedmoe_client.learning.step_report import step_report
from fedmoe_client.learning.sub_catalogue import TABLE, renumbered, touched_items
from fedmoe_client.learning.training import LocalSteps, decayed, optimizer_over, seed_dropout, warmed_up
from model.residual_moe import ResidualMoE
from model.stacked import StackedModel


@dataclass(frozen=True)
class Member:
    """A client that is to be trained in a stack. own: its private parameters by name, without the item table."""

    client: int
    steps: LocalSteps
    own: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Windows of each of its steps."""
        return tuple(len(batch.context) for batch in self.steps.batches)


@dataclass(frozen=True)
class Trained:
    """What came of a stack.

    parameters: name -> ``[C, ...]``, the item table ``[C, R, D]``; touched: ``[C, R]``, the ids of its rows, padded
    with 0; metrics: name -> ``[C]``; members: the clients.
    """

    members: Sequence[Member]
    parameters: Mapping[str, Tensor]
    touched: Tensor
    metrics: Mapping[str, Tensor]


def stacks_of(members: Sequence[Member], windows: int) -> Iterator[list[Member]]:
    """Yield stacks of clients of one shape, each of about ``windows`` windows a step and at least one client.

    Clients of a shape are shared out evenly: a small stack for the last few would cost nearly as much as a full one.
    """
    by_shape: dict[tuple[int, ...], list[Member]] = defaultdict(list)
    for member in members:
        by_shape[member.shape].append(member)
    for shape, alike in sorted(by_shape.items()):
        stacks = min(max(1, round(len(alike) * max(shape) / windows)), len(alike))
        for number in range(stacks):
            yield alike[number * len(alike) // stacks : (number + 1) * len(alike) // stacks]


class StackTrainer:
    """Trains stacks of clients with one stacked model."""

    def __init__(self, model: ResidualMoE, training: TrainingSettings) -> None:
        self.training = training
        self.num_items = model.num_items
        self.experts, self.competes = list(model.experts), model.competes
        self._decayed = decayed(model)
        self._model = StackedModel(model)

    def train(self, members: Sequence[Member], server: Mapping[str, Tensor], server_round: int) -> Trained:
        """Train clients of one shape, from the server's parameters and each client's own.

        Raises FloatingPointError if a loss, or a parameter afterwards, is not finite.
        """
        touched, batches = _joined(members, self.num_items)
        parameters = _start(members, server, touched)
        optimizer = optimizer_over(parameters, self._decayed, self.training, warmed_up(self.training, server_round))
        seed_dropout(members[0].steps.dropout_seed, touched.device)
        targets = torch.stack([(batch.targets > 0).view(len(members), -1).sum(dim=1) for batch in batches])
        reports = [self._step(parameters, batch, touched, optimizer) for batch in batches]
        means = {
            name: (torch.stack([report[name] for report in reports]) * targets).sum(dim=0) / targets.sum(dim=0)
            for name in reports[0]
        }
        # A sum is finite only if all of its terms are, and costs a fraction of looking at each.
        if not bool(torch.stack([each.detach().sum() for each in parameters.values()]).isfinite().all()):
            raise FloatingPointError("a parameter in the stack is not finite")
        return Trained(members, {name: each.detach() for name, each in parameters.items()}, touched, means)

    def _step(
        self, parameters: Mapping[str, Tensor], batch: WindowBatch, touched: Tensor, optimizer: torch.optim.Optimizer
    ) -> dict[str, Tensor]:
        """Take one step of every client; return the numbers of their reports, ``[C]`` each."""
        clients = len(touched)
        self._model.load(parameters, touched, len(batch.context) // clients)
        scores = window_scores(self._model, batch, self.num_items, self.training.precision).by_client(clients)
        losses: Losses = vmap(lambda *each: losses_of(WindowScores(*each), self.num_items, self.training))(
            *scores.tensors()
        )
        if not bool(losses.ranking.isfinite().all()):
            raise FloatingPointError("a loss in the stack is not finite")
        optimizer.zero_grad()
        losses.total.sum().backward()  # type: ignore[no-untyped-call]
        gate = parameters.get("gate.value")
        gradient = None if gate is None or gate.grad is None else gate.grad.clone()
        clip_each(parameters, self.training)
        numbers: dict[str, Tensor] = vmap(
            lambda loss, *each: step_report(WindowScores(*each), loss, self.experts, self.competes)
        )(Losses(*(loss.detach() for loss in losses)), *scores.map(Tensor.detach).tensors())
        optimizer.step()
        if gate is not None and gradient is not None:
            numbers |= {"gate": gate.detach().clone(), "gate-gradient": gradient}
        return numbers


def clip_each(parameters: Mapping[str, Tensor], training: TrainingSettings) -> None:
    """Clip every client's gate gradient, then its whole gradient's norm, in place."""
    gate = parameters.get("gate.value")
    if gate is not None and gate.grad is not None and training.clip_gate:
        gate.grad.clamp_(-training.clip_gate, training.clip_gate)
    if not training.clip_norm:
        return
    gradients = [each.grad.reshape(len(each), -1) for each in parameters.values() if each.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]).norm(dim=0)  # [C]
    factors = (training.clip_norm / (norms + 1e-6)).clamp_max(1.0).unsqueeze(1)
    if bool((factors < 1.0).any()):
        for gradient in gradients:
            gradient.mul_(factors)


def _joined(members: Sequence[Member], num_items: int) -> tuple[Tensor, list[WindowBatch]]:
    """Return the touched ids ``[C, R]`` and the steps' batches of all clients in local ids (see ``model.stacked``)."""
    each = [touched_items(member.steps.batches, num_items) for member in members]
    rows = max(len(touched) for touched in each)
    padded = torch.stack([torch.nn.functional.pad(touched, (0, rows - len(touched))) for touched in each])
    local = [
        [_shifted(renumbered(batch, touched), place * rows) for batch in member.steps.batches]
        for place, (member, touched) in enumerate(zip(members, each, strict=True))
    ]
    return padded, [_concatenated(batches) for batches in zip(*local, strict=True)]


def _shifted(batch: WindowBatch, by: int) -> WindowBatch:
    assert batch.negatives is not None
    return WindowBatch(*(ids + by * (ids > 0) for ids in (batch.context, batch.targets, batch.negatives)))


def _concatenated(batches: Sequence[WindowBatch]) -> WindowBatch:
    return WindowBatch(
        torch.cat([batch.context for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        torch.cat([batch.negatives for batch in batches if batch.negatives is not None]),
    )


def _start(members: Sequence[Member], server: Mapping[str, Tensor], touched: Tensor) -> dict[str, Tensor]:
    """Return the parameters to start from, leaves ``[C, ...]``: each client's own where it has one."""
    found = {}
    for name, shared in server.items():
        if name == TABLE:
            start = shared.index_select(0, touched.flatten()).view(*touched.shape, -1)
        elif any(name in member.own for member in members):
            start = torch.stack([member.own.get(name, shared) for member in members])
        else:
            start = shared.expand(len(members), *shared.shape).clone()
        found[name] = start.requires_grad_()
    return found
