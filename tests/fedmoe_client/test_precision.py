"""Training in bfloat16: about the same update, parameters in float32, one by one and in a stack."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.registry import load_dataset
from data.sampling import training_part
from fedmoe.loading import load_settings
from fedmoe_client.learning.training import draw_steps, train_steps
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.stacked.training import Member, StackTrainer
from model.losses import window_scores

WORDS = (
    "dataset=synthetic users=6 data.synthetic.items=40 dim=16 attention_dim=16 blocks=1 max_seq_len=6 memory_size=6 "
    "memory_refresh=3 num_negatives=10 dropout=0 text_file=noise visual_file=noise"
).split()


def bench_of(precision: str) -> Workbench:
    settings, _ = load_settings([*WORDS, f"precision={precision}"])
    return Workbench(settings, load_dataset(settings))


def steps_of(bench: Workbench, user: int) -> Any:
    interactions = bench.dataset.interactions
    items = training_part(interactions.history(user))
    return draw_steps(items, bench.negatives, bench.settings, user, 1, bench.device)


def update(precision: str) -> Tensor:
    bench = bench_of(precision)
    before = torch.cat([each.detach().flatten().clone() for each in bench.parameters.values()])
    train_steps(bench.model, steps_of(bench, 0), bench.settings.training, 1)
    assert {each.dtype for each in bench.parameters.values()} == {torch.float32}
    return torch.cat([each.detach().flatten() for each in bench.parameters.values()]) - before


def test_bfloat16_gives_about_the_same_update() -> None:
    full, half = update("float32"), update("bfloat16")
    assert 0 < float((half - full).norm()) < 0.1 * float(full.norm())


def test_scores_are_handed_on_in_float32() -> None:
    bench = bench_of("bfloat16")
    scores = window_scores(bench.model, steps_of(bench, 0).batches[0], 40, "bfloat16")
    assert {tensor.dtype for tensor in scores.tensors()} == {torch.float32, torch.bool}


def test_a_stack_trains_in_bfloat16_too() -> None:
    bench = bench_of("bfloat16")
    start = {name: each.detach().clone() for name, each in bench.parameters.items()}
    steps = steps_of(bench, 0)
    trainer = StackTrainer(bench.model, bench.settings.training)
    stacked = trainer.train([Member(0, steps, {})], start, 1)
    train_steps(bench.model, steps, bench.settings.training, 1)
    for name in ("backbone.positions.weight", "experts.visual.query.weight"):
        alone, start_value = bench.parameters[name].detach() - start[name], start[name]
        np.testing.assert_allclose(
            stacked.parameters[name][0] - start_value, alone, atol=0.05 * float(alone.abs().max())
        )
