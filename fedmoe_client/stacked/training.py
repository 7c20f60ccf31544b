"""Training many clients at once: their windows go through one pass of the stacked model, each with its own parameters.

The clients of a stack take the same number of steps with the same numbers of windows, padded to the longest. All else
is as it is for a client alone: its batches, its optimiser, its clipped gradient, its report. Dropout draws from the
stack's generator.

Shapes: C clients, W windows of a client in a step, R touched items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedmoe.settings import Settings, TrainingSettings
from fedmoe.wire import NamedArrays, packed_size
from fedmoe_client.learning.client import ROWS
from fedmoe_client.learning.own_client import TABLE
from fedmoe_client.learning.training import (
    LocalSteps,
    Optimizer,
    decayed,
    optimizer_over,
    renumbered,
    seed_dropout,
    touched_items,
    warmed_up,
)
from model.experts import refresh_of
from model.losses import Losses, WindowBatch, joined, losses_of, step_report, window_scores
from model.residual_moe import ResidualMoE
from model.stacked import StackedModel


@dataclass(frozen=True)
class Member:
    """A client that is to be trained in a stack.

    place: of its message; own: its private parameters by name, without the item table.
    """

    place: int
    steps: LocalSteps
    own: Mapping[str, Tensor]

    def kind(self, refresh: int) -> tuple[tuple[int, int, int], ...]:
        """Return what clients of a stack have in common, of each step; refresh: ``model.memory_refresh``.

        That is the windows, how many positions share a memory, and the positions of windows with earlier items: between
        those and the window there can be no padding.
        """
        return tuple(
            (len(batch.context), refresh_of(length := batch.targets.shape[1], refresh), length * (width > length))
            for batch, width in zip(self.steps.batches, self.width, strict=True)
        )

    @property
    def width(self) -> tuple[int, ...]:
        """Positions of each step, with those before its windows."""
        return tuple(batch.context.shape[1] for batch in self.steps.batches)

    @cached_property
    def touched(self) -> Tensor:
        """The ids of the items in all steps, ``[R]``, 0 first; a loss over the whole catalogue is not stacked."""
        return touched_items(self.steps.batches, 0)


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


def stacks_of(members: Sequence[Member], windows: int, refresh: int) -> Iterator[list[Member]]:
    """Yield stacks of clients of one kind, each of about ``windows`` windows a step and at least one client.

    Clients of a kind are sorted by length, so that little is padded, and shared out evenly: a small stack for the last
    few would cost nearly as much as a full one.
    """
    by_kind: dict[tuple[tuple[int, int, int], ...], list[Member]] = defaultdict(list)
    for member in members:
        by_kind[member.kind(refresh)].append(member)
    for kind, alike in sorted(by_kind.items()):
        alike.sort(key=lambda member: member.width)
        most = max(count for count, _, _ in kind)
        stacks = min(max(1, round(len(alike) * most / windows)), len(alike))
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
        """Train clients of one kind, from the server's parameters and each client's own.

        Raises FloatingPointError if a loss, or a parameter afterwards, is not finite.
        """
        touched, batches = _joined(members)
        parameters = _start(members, server, touched)
        optimizer = optimizer_over(parameters, self._decayed, self.training, warmed_up(self.training, server_round))
        seed_dropout(members[0].steps.dropout_seed, touched.device)
        targets = torch.stack([(batch.targets > 0).view(len(members), -1).sum(dim=1) for batch in batches])
        reports = [self._step(parameters, batch, touched, optimizer) for batch in batches]
        means = {
            name: (torch.stack([report[name] for report in reports]) * targets).sum(dim=0) / targets.sum(dim=0)
            for name in reports[0]
        }
        # A norm is finite only if all entries are, and costs a fraction of looking at each.
        if not bool(torch.stack(torch._foreach_norm([each.detach() for each in parameters.values()])).isfinite().all()):
            raise FloatingPointError("a parameter in the stack is not finite")
        return Trained(members, {name: each.detach() for name, each in parameters.items()}, touched, means)

    def _step(
        self, parameters: Mapping[str, Tensor], batch: WindowBatch, touched: Tensor, optimizer: Optimizer
    ) -> dict[str, Tensor]:
        """Take one step of every client; return the numbers of their reports, ``[C]`` each."""
        clients = len(touched)
        self._model.load(parameters, touched, len(batch.context) // clients)
        scores = window_scores(self._model, batch, self.num_items, self.training.precision).by_client(clients)
        losses = losses_of(scores, self.num_items, self.training)
        if not bool(losses.ranking.isfinite().all()):
            raise FloatingPointError("a loss in the stack is not finite")
        optimizer.zero_grad()
        losses.total.sum().backward()  # type: ignore[no-untyped-call]
        gate = parameters.get("gate.value")
        gradient = None if gate is None or gate.grad is None else gate.grad.clone()
        clip_each(parameters, self.training)
        detached = Losses(*(loss.detach() for loss in losses))
        numbers = step_report(scores.map(Tensor.detach), detached, self.experts, self.competes)
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


def _joined(members: Sequence[Member]) -> tuple[Tensor, list[WindowBatch]]:
    """Return the touched ids ``[C, R]`` and the steps' batches of all clients in local ids (see ``model.stacked``)."""
    each = [member.touched for member in members]
    rows = max(len(touched) for touched in each)
    padded = torch.stack([functional.pad(touched, (0, rows - len(touched))) for touched in each])
    local = [
        [_shifted(renumbered(batch, touched), place * rows) for batch in member.steps.batches]
        for place, (member, touched) in enumerate(zip(members, each, strict=True))
    ]
    return padded, [joined(batches) for batches in zip(*local, strict=True)]


def _shifted(batch: WindowBatch, by: int) -> WindowBatch:
    assert batch.negatives is not None
    return WindowBatch(*(ids + by * (ids > 0) for ids in (batch.context, batch.targets, batch.negatives)))


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


class UpdateSum:
    """The weighted mean of stacked clients' updates: what the server would make of their replies, without the replies.

    ``server + sum_c n_c (x_c - server) / sum_c n_c``, with n_c the clients' weights. Summing differences keeps the
    precision of float32 where it matters.
    """

    def __init__(self, server: Mapping[str, Tensor], settings: Settings, ids: Tensor) -> None:
        """server: the shared parameters that the clients started from; ids: all that they may touch, as ``[R]``."""
        table = server[TABLE]
        self._server = server
        self._rows_travel = settings.federation.item_updates == "auto"
        self._ids = ids
        self._places = torch.zeros(len(table), dtype=torch.long, device=table.device)
        self._places[ids] = torch.arange(len(ids), device=table.device)
        self._total = {name: torch.zeros_like(each) for name, each in server.items() if name != TABLE}
        self._rows = table.new_zeros((len(ids), *table.shape[1:]))  # of the table: what is summed of those rows
        self._touched = torch.zeros(len(ids), dtype=torch.bool, device=table.device)
        self._metrics: dict[str, float] = {}
        self._sizes: dict[int, int] = {}  # rows of the item table -> bytes of a client's arrays
        self.weight = 0
        self.clients = 0
        self.bytes = 0

    def add(self, trained: Trained) -> None:
        """Add the clients of a stack."""
        weights_given = [member.steps.weight for member in trained.members]
        weights = torch.tensor(weights_given, dtype=torch.float32, device=trained.touched.device)
        for name, server in self._server.items():
            parameters = trained.parameters[name]
            if name == TABLE:
                places = self._places[trained.touched.flatten()]
                moved = (parameters - server[trained.touched]) * weights.view(-1, 1, 1)
                self._rows.index_add_(0, places, moved.flatten(0, 1))
                self._touched[places] = True
            else:
                moved = (parameters - server).view(len(weights), -1)
                self._total[name] += (weights @ moved).view(server.shape)
        for name, values in trained.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + float(values @ weights)
        self.weight += sum(weights_given)
        self.clients += len(weights)
        self.bytes += self._bytes_of_replies(trained.touched)

    def mean(self) -> NamedArrays:
        """Return the mean by name; of the item table the rows that any client touched, where that is smaller."""
        table, touched = self._server[TABLE], self._touched.nonzero().flatten()
        ids, moved = self._ids[touched], self._rows[touched] / self.weight
        if self._travels(len(ids) - 1):  # the first one is the padding's
            rows = {TABLE: table[ids[1:]] + moved[1:], ROWS: ids[1:]}
        else:
            rows = {TABLE: table.index_add(0, ids, moved)}
        means = {name: self._server[name] + total / self.weight for name, total in self._total.items()}
        return {name: each.cpu().numpy() for name, each in (means | rows).items()}

    def metrics(self) -> dict[str, float]:
        """Return the means of the clients' numbers."""
        return {name: total / self.weight for name, total in self._metrics.items()}

    def _bytes_of_replies(self, touched: Tensor) -> int:
        """Return the bytes of the arrays that the clients of a stack would have sent, one by one."""
        return sum(self._bytes_of_reply(rows) for rows in (touched > 0).sum(dim=1).tolist())

    def _bytes_of_reply(self, rows: int) -> int:
        if rows not in self._sizes:
            layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
            layout = {name: (np.dtype(np.float32), tuple(each.shape)) for name, each in self._server.items()}
            if self._travels(rows):
                layout[TABLE] = np.dtype(np.float32), (rows, *layout[TABLE][1][1:])
                layout[ROWS] = np.dtype(np.int64), (rows,)
            self._sizes[rows] = packed_size([(name, *about) for name, about in layout.items()])
        return self._sizes[rows]

    def _travels(self, rows: int) -> bool:
        """Whether so many rows of the item table, without the padding's, travel in place of the table."""
        table = self._server[TABLE]
        return self._rows_travel and (table[0].nbytes + 8) * rows < table.nbytes
