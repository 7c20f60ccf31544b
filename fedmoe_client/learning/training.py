"""Local training: from one user's items to batches, and a few epochs of steps over these batches.

Shapes: B windows, L positions, P earlier items for the experts' memory, n negatives, V items, R touched items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.sampling import Negatives, PackedWindows, generator, packed_windows
from fedmoe.settings import ModelSettings, Settings, TrainingSettings
from fedmoe_client.learning.additions import Addition
from model.experts import refresh_of
from model.losses import Losses, WindowBatch, WindowScores, objective, step_report
from model.residual_moe import ResidualMoE


@dataclass(frozen=True)
class LocalSteps:
    """All local steps of one user in one round, drawn before the first of them.

    batches: one a step, in their order; at least one. weight: of the user in the server's mean, see ``weight_of``.
    dropout_seed: for torch's own generator, which dropout draws from.
    """

    batches: list[WindowBatch]
    weight: int
    dropout_seed: int


def draw_steps(
    items: NDArray[np.int32], pool: Negatives, settings: Settings, client: int, server_round: int, device: torch.device
) -> LocalSteps:
    """Draw a user's batches; all randomness is that of (seed, round, client).

    items: its training part, oldest first, at least two; pool: what negatives are drawn from.
    """
    rng = generator(settings.seed, "training", server_round, client)
    dropout_seed = int(rng.integers(2**62))
    epochs = [
        list(window_batches(items, pool, settings.model, settings.training, rng, device))
        for _ in range(settings.training.local_epochs)
    ]
    weight = weight_of(sum(int((batch.targets > 0).sum()) for batch in epochs[0]), settings.federation.client_weight)
    return LocalSteps([batch for epoch in epochs for batch in epoch], weight, dropout_seed)


def weight_of(targets: int, rule: Literal["examples", "sqrt", "equal"]) -> int:
    """Return what a user with so many targets in an epoch weighs: a whole number, as Flower's ``num-examples`` is.

    By its targets a user of 500 counts as much as twenty of 25; with equal weights the short histories' noise does.
    """
    if rule == "equal":
        return 1
    return targets if rule == "examples" else max(1, round(10 * sqrt(targets)))  # 10: the rounding should not matter


def window_batches(
    items: NDArray[np.int32],
    pool: Negatives,
    model: ModelSettings,
    training: TrainingSettings,
    rng: np.random.Generator,
    device: torch.device,
) -> Iterator[WindowBatch]:
    """Yield one epoch of a user's windows, in random order, or of as many as ``max_windows`` allows.

    items: its training part, oldest first. Negatives are drawn from the items outside the training part alone: leaving
    out the validation or the test item as well would tell which they are. What is padding in all windows of a batch is
    cut off: a short history costs what it holds.
    """
    windows = packed_windows(items, model.max_seq_len, training.windows, rng)
    earlier = model.memory_size if model.mixture else 0
    context = with_earlier_items(windows, items, earlier)
    excluded = pool.excluded(items)
    order = _chosen(len(windows), training.max_windows, rng)
    for chosen in np.split(order, range(training.batch_size, len(order), training.batch_size)):
        negatives = None
        if training.loss != "softmax":
            drawn = pool.draw(rng, excluded, len(chosen) * training.num_negatives)
            negatives = _tensor(drawn.reshape(len(chosen), training.num_negatives), device)
        whole, targets = context[chosen], windows.targets[chosen]
        before = _rounded(int(windows.starts[chosen].max()), model.memory_refresh, earlier)
        most = int((targets > 0).sum(axis=1).max())
        length = _rounded(most, refresh_of(most, model.memory_refresh), model.max_seq_len)
        used = np.concatenate([whole[:, earlier - before : earlier], whole[:, -length:]], axis=1)
        yield WindowBatch(_tensor(used, device), _tensor(targets[:, -length:], device), negatives)


def _rounded(count: int, step: int, most: int) -> int:
    """Return a count, up to the next multiple of ``step``: few sizes make stacks of many clients."""
    return min(-(-count // step) * step, most)


def _chosen(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return which windows are trained, in random order: all, or the latest and others drawn at random.

    The latest is nearest to what is to be recommended: with it a federation learns more than with windows drawn alike.
    """
    if not most or count <= most:
        return rng.permutation(count)
    others = rng.choice(count - 1, size=most - 1, replace=False)
    return rng.permutation(np.append(others, count - 1))


def with_earlier_items(windows: PackedWindows, items: NDArray[np.int32], earlier: int) -> NDArray[np.int32]:
    """Return int32 ``[W, earlier + L]``: each window's inputs, preceded by the items before its start."""
    padded = np.concatenate([np.zeros(earlier, np.int32), items])
    before = padded[windows.starts[:, None] + np.arange(earlier)]
    return np.concatenate([before, windows.inputs], axis=1)


def _tensor(array: NDArray[np.int32], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array.astype(np.int64))
    if device.type == "cuda":  # from pinned memory a copy does not wait for the kernels before it
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def touched_items(batches: Iterable[WindowBatch], num_items: int) -> Tensor:
    """Return the ids in some batches, int64 ``[R]``, ascending and distinct; the first one is 0, the padding.

    All ids ``0..V`` if one of the batches has no negatives: its loss runs over the whole catalogue.
    """
    found = []
    for batch in batches:
        if batch.negatives is None:
            return torch.arange(num_items + 1, device=batch.targets.device)
        found += [batch.context.flatten(), batch.targets.flatten(), batch.negatives.flatten()]
    touched: Tensor = torch.unique(torch.cat([found[0].new_zeros(1), *found]))
    return touched


def renumbered(batch: WindowBatch, touched: Tensor) -> WindowBatch:
    """Return a batch with each item's place in ``touched`` for its id; padding stays 0."""
    if batch.negatives is None:
        return batch
    return WindowBatch(*(torch.searchsorted(touched, ids) for ids in (batch.context, batch.targets, batch.negatives)))


def load(parameters: Mapping[str, Tensor], arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy arrays into parameters in place."""
    with torch.no_grad():
        for name, array in arrays.items():
            parameters[name].copy_(torch.from_numpy(array))


@dataclass(frozen=True)
class Outcome:
    """What a client reports of its training: its weight in the mean, and means over its steps by name."""

    weight: int
    metrics: dict[str, float]


def train_steps(
    model: ResidualMoE,
    steps: LocalSteps,
    training: TrainingSettings,
    server_round: int,
    additions: Sequence[Addition] = (),
) -> Outcome:
    """Train the model in place, with a new optimiser. Raises FloatingPointError if the loss is not finite."""
    parameters = dict(model.named_parameters())
    seed_dropout(steps.dropout_seed, next(iter(parameters.values())).device)
    optimizer = optimizer_over(parameters, decayed(model), training, warmed_up(training, server_round))
    if not model.training:
        model.train()
    reports = []
    for batch in steps.batches:
        losses, scores = objective(model, batch, training)
        total = losses.total
        for addition in additions:
            if (term := addition.term()) is not None:
                total = total + term
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        gate_gradient = clip_gradients(parameters, training)
        for addition in additions:
            addition.step()
        optimizer.step()
        reports.append((int((batch.targets > 0).sum()), _report(model, losses, scores, gate_gradient)))
    return Outcome(steps.weight, weighted_means(reports))


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generator that dropout draws from on a device; ``torch.manual_seed`` looks at every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def warmed_up(training: TrainingSettings, server_round: int) -> float:
    """Return the learning rate of a round: it rises linearly over the warm-up rounds."""
    if server_round >= training.learning_rate_warmup_rounds:
        return training.learning_rate
    return training.learning_rate * server_round / training.learning_rate_warmup_rounds


class LocalSGD:
    """SGD as torch's, whose class imports two seconds and 70 MB of ``torch.compile`` at its first use."""

    def __init__(self, groups: Sequence[tuple[Sequence[Tensor], float]], learning_rate: float, momentum: float) -> None:
        """groups: parameters, and how much they decay."""
        self._groups = [(list(parameters), decay) for parameters, decay in groups]
        self._velocities: dict[int, Tensor] = {}  # by id() of the parameter
        self._learning_rate, self._momentum = learning_rate, momentum

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameters, _ in self._groups:
            for each in parameters:
                each.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take a step along the gradients, which are used up; a parameter without one stays."""
        for parameters, decay in self._groups:
            weights = [each for each in parameters if each.grad is not None]
            gradients = [each.grad for each in weights if each.grad is not None]
            if not weights:
                continue
            if decay:
                torch._foreach_add_(gradients, weights, alpha=decay)
            if self._momentum:
                gradients = self._velocities_of(weights, gradients)
            torch._foreach_add_(weights, gradients, alpha=-self._learning_rate)

    def _velocities_of(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        for weight, gradient in zip(weights, gradients, strict=True):
            velocity = self._velocities.setdefault(id(weight), gradient)
            if velocity is not gradient:
                velocity.mul_(self._momentum).add_(gradient)
        return [self._velocities[id(weight)] for weight in weights]


Optimizer = LocalSGD | torch.optim.Optimizer


@lru_cache(maxsize=1)
def decayed(model: ResidualMoE) -> set[str]:
    """Return the names of the parameters that decay: matrices. An item row would move without being trained."""
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


def _report(model: ResidualMoE, losses: Losses, scores: WindowScores, gate_gradient: float) -> dict[str, float]:
    """Return a step's numbers. Raises FloatingPointError, with what to try, if the loss is not finite."""
    ranking = float(losses.ranking.detach())
    if not np.isfinite(ranking):
        raise FloatingPointError(f"the loss is {ranking}: lower training.learning_rate or training.clip_norm")
    detached = Losses(*(loss.detach() for loss in losses))
    said = step_report(scores.map(Tensor.detach), detached, list(model.experts), model.competes)
    numbers = {name: float(value) for name, value in said.items()}
    if model.gate is not None:
        numbers |= {"gate": float(model.gate.value.detach()), "gate-gradient": gate_gradient}
    return numbers


def weighted_means(reports: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Return the means by name of reports, each a weight and numbers of the same names."""
    total = sum(weight for weight, _ in reports)
    return {name: sum(weight * numbers[name] for weight, numbers in reports) / total for name in reports[0][1]}
