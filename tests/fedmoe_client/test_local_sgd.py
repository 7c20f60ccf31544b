"""The optimiser of local training."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fedmoe_client.learning.training import LocalSGD


@pytest.mark.parametrize(("decay", "momentum"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.9)])
def test_it_is_torchs_to_the_bit(decay: float, momentum: float) -> None:
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(3, 2, generator=generator) for _ in range(4)]
    ours, theirs = ([torch.nn.Parameter(each.clone()) for each in start] for _ in range(2))
    mine = LocalSGD([(ours[:2], decay), (ours[2:], 0.0)], 0.3, momentum)
    groups = [{"params": theirs[:2], "weight_decay": decay}, {"params": theirs[2:], "weight_decay": 0.0}]
    known = torch.optim.SGD(groups, lr=0.3, momentum=momentum)
    for number in range(4):
        mine.zero_grad()
        known.zero_grad()
        assert all(each.grad is None for each in ours)
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if (place + number) % 3:  # the others have no gradient in this step
                a.grad = torch.randn(3, 2, generator=generator)
                b.grad = a.grad.clone()
        mine.step()
        known.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_training_does_not_import_the_compiler() -> None:
    program = (
        "import sys, torch; from fedmoe_client.learning.training import LocalSGD; "
        "p = torch.nn.Parameter(torch.ones(2)); p.sum().backward(); LocalSGD([([p], 0.1)], 0.1, 0.9).step(); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
