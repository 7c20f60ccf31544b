"""On data whose next item is random, no model may beat popularity; one that sees the future does."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch
from torch import Tensor

import model.sasrec
from benchmarks.quality.central import CentralPlan, train_centrally
from data.dataset import Dataset
from data.features import ItemFeatures
from data.sampling import Interactions, held_out
from fedmoe.loading import load_settings
from fedmoe_client.learning.evaluation import Scorer, mean_metrics, popularity_metrics, ranks
from model.residual_moe import ResidualMoE

USERS, ITEMS, LENGTH = 1000, 200, 12
SPLITS = ("validation", "test")
SETTINGS, _ = load_settings(
    "dim=16 attention_dim=16 max_seq_len=12 memory_size=12 memory_refresh=4 num_negatives=30 dropout=0.1".split()
)
PLAN = CentralPlan(epochs=5, batch_size=32, learning_rate=5e-3)


@pytest.fixture(scope="module")
def random_data() -> Dataset:
    """Histories of distinct items in random order; visual and text features that say nothing."""
    rng = np.random.default_rng(5)
    items = np.concatenate([rng.permutation(ITEMS)[:LENGTH] + 1 for _ in range(USERS)]).astype(np.int32)
    users, ids = np.arange(USERS).astype(str), np.array([""] + [str(item) for item in range(1, ITEMS + 1)])
    interactions = Interactions(items, np.arange(USERS + 1) * LENGTH, users, ids)
    present = np.arange(ITEMS + 1) > 0
    noise = [rng.normal(size=(ITEMS + 1, 8)).astype(np.float32) * present[:, None] for _ in range(2)]
    features = {name: ItemFeatures(each, present) for name, each in zip(("visual", "text"), noise, strict=True)}
    return Dataset("random", interactions, features)


def hit_rate(scorer: Scorer, dataset: Dataset) -> float:
    users = np.arange(dataset.interactions.num_users)
    found = ranks(scorer, dataset.interactions, users, "test", SETTINGS.evaluation, SETTINGS.seed, LENGTH)
    return mean_metrics(found, [10])["hr@10"]


@pytest.mark.parametrize("fusion", ["residual", "competitive", "score"])
def test_no_model_beats_popularity_on_random_data(random_data: Dataset, fusion: str) -> None:
    settings = SETTINGS.model_copy(update={"model": SETTINGS.model.model_copy(update={"fusion": fusion})})
    _, metrics = train_centrally(settings, random_data, PLAN)
    popularity = popularity_metrics(random_data.interactions, settings.evaluation, settings.seed)
    model_hits, popular_hits = (mean(found[split]["hr@10"] for split in SPLITS) for found in (metrics, popularity))
    # Both hit by chance, 5% of 2,000 times: their difference has a standard deviation of 0.007.
    assert model_hits < popular_hits + 0.03


def test_a_model_that_sees_the_next_item_is_caught(random_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def sees_everything(present: Tensor) -> Tensor:
        itself = torch.eye(present.shape[1], dtype=torch.bool)
        return (present.unsqueeze(1) | itself).unsqueeze(1)

    monkeypatch.setattr(model.sasrec, "attention_mask", sees_everything)
    leaking, _ = train_centrally(SETTINGS, random_data, replace(PLAN, epochs=12))

    users = range(random_data.interactions.num_users)
    targets = iter([held_out(random_data.interactions.history(user), "test")[1] for user in users])

    def scorer(contexts: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        # As in training, the state of the position before the target sees the target at the position after it.
        own = np.array([[next(targets)] for _ in contexts])
        with torch.inference_mode():
            followed = torch.from_numpy(np.concatenate([contexts[:, 1:], own], axis=1))
            return _scores_of_last_but_one(leaking, followed, torch.tensor(candidates))

    popularity = popularity_metrics(random_data.interactions, SETTINGS.evaluation, SETTINGS.seed)
    # Twice the bound that a model without a leak keeps; chance has a standard deviation of 0.007.
    assert hit_rate(scorer, random_data) > popularity["test"]["hr@10"] + 0.06


def _scores_of_last_but_one(leaking: ResidualMoE, items: Tensor, candidates: Tensor) -> np.ndarray:
    leaking.eval()
    states = leaking.states(items)[:, -2]
    return torch.einsum("bd,bnd->bn", states, leaking.items(candidates)).numpy()
