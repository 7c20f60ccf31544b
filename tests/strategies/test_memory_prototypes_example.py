"""The example of memory prototypes: what clients withhold, the server by hand, the slots, a tiny comparison."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from data.registry import load_dataset
from data.sampling import generator
from fedmoe.loading import load_settings
from model.build import build_model

WORDS = (
    "quick users=30 items=60 model.dim=8 attention_dim=8 max_seq_len=10 memory_size=20 memory_refresh=10 "
    "training.num_negatives=8"
).split()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "strategies"))
    return import_module("memory_prototypes")


def points(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_centres_of_few_items_never_leave_the_client(example: ModuleType) -> None:
    memory = points(*[[10, 0]] * 4, [9, 0], [11, 0], [0, 10], [0, 11])
    centres, sizes = example.client_centres(memory, 2, 5, generator(1, "test"))
    np.testing.assert_array_equal(centres, [[10, 0]])
    np.testing.assert_array_equal(sizes, [6])
    for few in (memory[:0], memory[:4]):
        centres, sizes = example.client_centres(few, 2, 5, generator(1, "test"))
        assert centres.shape == (0, 2) and sizes.shape == (0,)


def test_each_item_is_in_one_cluster(example: ModuleType) -> None:
    memory = generator(1, "memory").normal(size=(40, 3)).astype(np.float32)
    centres, sizes = example.client_centres(memory, 5, 1, generator(1, "test"))
    assert sizes.sum() == 40
    np.testing.assert_allclose(sizes @ centres / 40, memory.mean(axis=0), atol=1e-6)


def test_centres_weigh_by_their_items(example: ModuleType) -> None:
    sent = [(points([0, 0], [10, 8]), np.array([30.0, 7.0])), (points([1, 2]), np.array([10.0]))]
    one = example.aggregate(sent, 1, generator(1, "test"))
    np.testing.assert_allclose(one, [[80 / 47, 76 / 47]], rtol=1e-6)
    two = example.aggregate(sent, 2, generator(1, "test"))
    np.testing.assert_allclose(two[two[:, 0].argsort()], [[0.25, 0.5], [10, 8]])


def test_the_order_of_clients_is_irrelevant_to_the_bit(example: ModuleType) -> None:
    rng = generator(1, "clients")
    sent = [(rng.normal(size=(3, 4)).astype(np.float32), rng.integers(5, 20, 3).astype(float)) for _ in range(20)]
    there, back = (example.aggregate(order, 6, generator(2, "server")) for order in (sent, sent[::-1]))
    np.testing.assert_array_equal(there, back)


def test_nobody_sends_a_centre(example: ModuleType) -> None:
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0))
    assert example.aggregate([nothing, nothing], 6, generator(1, "server")).shape == (0, 4)


def test_short_memories_alone_see_the_slots(example: ModuleType) -> None:
    settings, _ = load_settings([*WORDS, "experts=attention"])
    dataset = load_dataset(settings)
    contexts = torch.arange(1, 31).repeat(2, 1)
    contexts[0, :27] = 0  # 3 items
    candidates = torch.arange(31, 41).repeat(2, 1)
    memories = [dataset.interactions.history(user) for user in range(dataset.interactions.num_users)]

    def scores(kind: str, size: int) -> torch.Tensor:
        model = build_model(settings, dataset).eval()
        if kind:
            example.extend(model, kind, size, memories, example.Plan(), settings.seed)
        with torch.inference_mode():
            ranking = model.rank_scores(contexts, candidates)
            return torch.cat([ranking[:, None], model(contexts, 10, candidates).scores], dim=1)

    plain, extended = scores("", 0), scores("prototypes", 4)
    torch.testing.assert_close(scores("own memory only", 0), plain)
    torch.testing.assert_close(extended[1], plain[1])
    assert ((extended - plain)[0, [0, -1]].abs().amax(dim=1) > 1e-4).all()  # in ranking, and at the window's end


def test_p_by_hand(example: ModuleType) -> None:
    # mean .75, standard deviation .5, of 4: three standard errors
    assert example.paired_p(np.array([1.0, 1.0, 1.0, 0.0]), np.zeros(4)) == pytest.approx(0.0027, abs=1e-5)
    assert example.paired_p(np.zeros(4), np.zeros(4)) == 1.0


def test_a_tiny_comparison(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(WORDS, example.Plan(epochs=1, sizes=(2,), cuts=(3, 5)))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == [
        "| own memory only",
        "| 2 prototypes",
        "| 2 random items",
        "| prototypes against these",
    ]
    assert {len(row) for row in rows} == {3}
