"""Ranking in NumPy is the torch model's ranking."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data.dataset import Dataset, nobody
from data.features import ItemFeatures
from fedmoe.settings import Settings
from model.build import build_model
from model.ranking import Ranker
from model.residual_moe import ResidualMoE

ITEMS, LENGTH, MEMORY = 40, 6, 8
FUSIONS = ("residual", "competitive", "score")
CHANGES: list[dict[str, Any]] = [
    {},
    {"item_representation": "id"},
    {"mixture": False},
    {"blocks": 0, "heads": 1},
    {"norm_sequence": False, "norm_visual": False, "norm_semantic": False},
    {"memory_decay": 0.0},
    {"experts": "attention"},
    {"experts": "attention", "item_representation": "id"},
    *({"fusion": fusion, "score": score} for fusion in FUSIONS for score in ("dot", "cosine")),
]


def features(width: int, seed: int, missing: float = 0.3) -> ItemFeatures:
    rng = np.random.default_rng(seed)
    present = rng.random(ITEMS + 1) > missing
    present[0] = False
    return ItemFeatures((rng.normal(size=(ITEMS + 1, width)) * present[:, None]).astype(np.float32), present)


@dataclass
class Pair:
    """A model and its ranker."""

    model: ResidualMoE
    ranker: Ranker

    def agree(self, history: np.ndarray, candidates: np.ndarray) -> None:
        found, wanted = self.scores(history, candidates)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

    def scores(self, history: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        context = np.zeros((1, max(LENGTH, MEMORY)), np.int64)
        recent = history[-context.shape[1] :]
        context[0, context.shape[1] - len(recent) :] = recent
        with torch.inference_mode():
            wanted = self.model.rank_scores(torch.from_numpy(context), torch.from_numpy(candidates[None]))[0].numpy()
        return self.ranker.scores(history, candidates), wanted


def pair(visual: ItemFeatures | None, text: ItemFeatures | None, **changes: Any) -> Pair:
    sizes = {"dim": 8, "attention_dim": 4, "max_seq_len": LENGTH, "memory_size": MEMORY, "memory_refresh": 4}
    settings = Settings.model_validate({"seed": 5, "model": {**sizes, **changes}})
    given = {"visual": visual, "text": text}
    known = {name: found for name, found in given.items() if found is not None}
    model = build_model(settings, Dataset("random", nobody(np.arange(ITEMS + 1).astype(str)), known)).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # as if trained: no zeros and ones are left
            parameter.add_(0.3 * torch.randn_like(parameter))
            if name == "items.ids.weight":
                parameter[0] = 0
    arrays = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    return Pair(model, Ranker(settings, arrays, known))


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_scores_are_the_models(changes: dict[str, Any]) -> None:
    both = pair(features(5, 1), features(7, 2), **changes)
    everything = np.arange(1, ITEMS + 1)
    for length in (0, 1, 3, LENGTH, MEMORY, 30):
        history = np.random.default_rng(length).permutation(ITEMS)[:length] + 1
        both.agree(history, everything)
        found, wanted = both.scores(history, everything)
        assert np.argsort(-found)[:10].tolist() == np.argsort(-wanted)[:10].tolist()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("visual, text", [(True, False), (False, True), (False, False)])
def test_a_modality_may_be_missing(visual: bool, text: bool, fusion: str) -> None:
    both = pair(features(5, 1) if visual else None, features(7, 2) if text else None, fusion=fusion)
    both.agree(np.array([3, 1, 4, 15, 9, 26, 5]), np.arange(1, ITEMS + 1))


def test_features_that_no_item_has() -> None:
    both = pair(features(5, 1, missing=1.0), features(7, 2))
    both.agree(np.array([3, 1, 4]), np.arange(1, ITEMS + 1))


BOTH = pair(features(5, 1), features(7, 2))


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, ITEMS), max_size=20), st.lists(st.integers(1, ITEMS), min_size=1, max_size=12, unique=True)
)
def test_any_history_and_any_candidates(history: list[int], candidates: list[int]) -> None:
    found = BOTH.ranker.scores(np.array(history, np.int64), np.array(candidates))
    BOTH.agree(np.array(history, np.int64), np.array(candidates))
    one_by_one = [BOTH.ranker.scores(np.array(history, np.int64), np.array([item]))[0] for item in candidates]
    np.testing.assert_allclose(found, one_by_one, rtol=1e-5, atol=1e-5)


def test_no_torch_is_loaded() -> None:
    code = "import sys, model.ranking; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
