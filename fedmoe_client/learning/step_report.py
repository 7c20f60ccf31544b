"""What a client reports of a training step, beside its loss: what the gate, the router and the experts did.

Everything is a tensor and nothing branches on a value, so that it can be mapped over the clients of a stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from fedmoe_client.learning.objective import Losses, WindowScores


def step_report(scores: WindowScores, losses: Losses, experts: Sequence[str], competes: bool) -> dict[str, Tensor]:
    """Return a step's numbers, scalars; their names depend on the model alone, so that all clients report the same.

    scores, losses: of one client's windows, detached. experts: names of the model's experts; competes: whether the
    backbone has a share of the router's weights.
    """
    numbers = {"loss": losses.ranking}
    if scores.weights is None or scores.available is None or scores.power is None:
        return numbers
    numbers["balance-loss"] = losses.balance
    names = ["sequence"] * competes + list(experts)
    spoken = scores.available[..., int(competes) :].any(dim=-1)  # [W, M, N]
    count = spoken.sum()
    # A user whose items lack every modality chose nothing, which counts as an even choice.
    means = torch.where(
        count > 0,
        (scores.weights * spoken.unsqueeze(-1)).flatten(0, -2).sum(dim=0) / count.clamp_min(1),
        torch.full_like(scores.power[0, :1], 1 / len(names)),
    )
    for name, mean in zip(names, means.unbind(), strict=True):
        numbers[f"router-{name}"] = mean
    for name, power in zip(experts, scores.power.mean(dim=0).unbind(), strict=True):
        numbers[f"view-{name}"] = power.sqrt()
    if len(names) > 1:  # 1: an even choice, 0: always the same expert
        entropies = torch.special.entr(scores.weights).sum(dim=-1) * spoken
        entropy = entropies.sum() / count.clamp_min(1) / log(len(names))
        numbers["router-entropy"] = torch.where(count > 0, entropy, torch.ones_like(entropy))
    return numbers
