"""Windows, negatives, objective and local training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from plain_clients import train_locally

from data.sampling import Negatives, packed_windows
from fedmoe.loading import load_settings
from fedmoe.settings import Settings, TrainingSettings
from fedmoe_client.learning.additions import Proximal
from fedmoe_client.learning.training import (
    clip_gradients,
    decayed,
    optimizer_over,
    warmed_up,
    weight_of,
    window_batches,
    with_earlier_items,
)
from model.build import build_model
from model.losses import WindowBatch, objective, ranking_loss
from model.residual_moe import ResidualMoE

SMALL = (
    "dataset=synthetic users=30 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=6 memory_size=6 "
    "memory_refresh=3 max_windows=0 num_negatives=5 dropout=0"
).split()


@pytest.fixture
def small() -> Callable[..., tuple[Settings, ResidualMoE, np.ndarray]]:
    def make(*words: str) -> tuple[Settings, ResidualMoE, np.ndarray]:
        from data.registry import load_dataset

        settings, _ = load_settings([*SMALL, *words])
        dataset = load_dataset(settings)
        model = build_model(settings, dataset)
        return settings, model, np.array(dataset.interactions.history(0))

    return make


def batches(items: np.ndarray, settings: Settings) -> Iterator[WindowBatch]:
    rng = np.random.default_rng(0)
    return window_batches(items, Negatives(60), settings.model, settings.training, rng, torch.device("cpu"))


def test_earlier_items_by_hand() -> None:
    items = np.arange(1, 9, dtype=np.int32)
    windows = packed_windows(items, 3)
    assert windows.inputs.tolist() == [[0, 0, 1], [2, 3, 4], [5, 6, 7]]
    assert with_earlier_items(windows, items, 2).tolist() == [[0, 0, 0, 0, 1], [0, 1, 2, 3, 4], [3, 4, 5, 6, 7]]
    assert with_earlier_items(windows, items, 0).tolist() == windows.inputs.tolist()


@given(length=st.integers(2, 40), size=st.integers(2, 9), batch=st.integers(1, 4), seed=st.integers(0, 99))
@hypothesis_settings(max_examples=30, deadline=None)
def test_an_epoch_trains_every_target_once_and_never_on_a_later_item(
    length: int, size: int, batch: int, seed: int
) -> None:
    settings, _ = load_settings([*SMALL, f"max_seq_len={size}", f"batch_size={batch}"])
    items = np.random.default_rng(seed).permutation(60)[:length].astype(np.int32) + 1
    targets = []
    for part in window_batches(
        items, Negatives(60), settings.model, settings.training, np.random.default_rng(0), torch.device("cpu")
    ):
        assert len(part.targets) <= batch
        assert part.negatives is not None
        assert not np.isin(part.negatives.numpy(), items).any()
        for context, row in zip(part.context.numpy(), part.targets.numpy(), strict=True):
            place = {int(item): index for index, item in enumerate(items)}
            for position in np.flatnonzero(row):
                before = context[: len(context) - part.targets.shape[1] + position + 1]
                assert max(place[int(item)] for item in before if item) == place[int(row[position])] - 1
            targets += row[row > 0].tolist()
    assert sorted(targets) == sorted(items[1:].tolist())


@pytest.mark.parametrize(
    "words", ["", "mixture=false", "memory_floor=0 experts=attention", "max_seq_len=10 memory_size=9"]
)
def test_what_is_cut_off_was_padding(small, words: str) -> None:  # type: ignore[no-untyped-def]
    # With a memory for each position: otherwise a longer window's memory is refreshed more seldom.
    settings, model, _ = small(*words.split(), "batch_size=1", "memory_refresh=1")
    length, earlier = settings.model.max_seq_len, settings.model.memory_size * settings.model.mixture
    cut = 0
    for count in range(2, 17):
        items = np.random.default_rng(count).permutation(60)[:count].astype(np.int32) + 1
        windows = packed_windows(items, length)
        whole = torch.from_numpy(with_earlier_items(windows, items, earlier).astype(np.int64))
        for batch in batches(items, settings):
            (place,) = np.flatnonzero(windows.targets[:, -1] == int(batch.targets[0, -1]))
            found = model(batch.context, batch.targets.shape[1], batch.negatives).scores[0]
            padded = model(whole[place, None], length, batch.negatives).scores[0, -len(found) :]
            valid = batch.targets[0] > 0
            assert int(valid.sum()) == (windows.targets[place] > 0).sum()
            torch.testing.assert_close(found[valid], padded[valid], atol=1e-5, rtol=1e-5)
            cut += whole.shape[1] - batch.context.shape[1]
    assert cut > 0


def test_an_epoch_has_at_most_so_many_windows_the_latest_and_others_each_time() -> None:
    settings, _ = load_settings([*SMALL, "max_seq_len=4", "max_windows=2"])
    items, rng = np.arange(1, 42, dtype=np.int32), np.random.default_rng(0)
    trained = set()
    for _ in range(40):
        (batch,) = window_batches(items, Negatives(60), settings.model, settings.training, rng, torch.device("cpu"))
        assert batch.targets.shape == (2, 4)
        assert list(range(38, 42)) in batch.targets.tolist()
        trained |= set(batch.targets.flatten().tolist())
    assert trained == set(range(2, 42))  # each target has its turn
    few = items[:5]
    (batch,) = window_batches(few, Negatives(60), settings.model, settings.training, rng, torch.device("cpu"))
    assert batch.targets.tolist() == [[2, 3, 4, 5]]


def test_the_held_out_items_may_be_negatives() -> None:
    # Leaving the test item out of the negatives would tell which it is.
    settings, _ = load_settings([*SMALL, "num_negatives=500"])
    training = np.arange(1, 9, dtype=np.int32)
    batch = next(batches(training, settings))
    assert batch.negatives is not None
    assert set(range(9, 61)) == set(batch.negatives.numpy().ravel().tolist())


def test_training_is_the_same_for_the_same_seed_round_and_client(small) -> None:  # type: ignore[no-untyped-def]
    results = []
    for client, server_round in ((3, 1), (3, 1), (4, 1), (3, 2)):
        settings, model, items = small("dropout=0.3")
        torch.rand(client)  # whatever was drawn before does not matter
        train_locally(model, items, settings, client, server_round)
        results.append(model.items.ids.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[3])


@pytest.mark.parametrize("loss", ["sampled_softmax", "softmax", "bpr", "gbce"])
def test_every_loss_learns_the_sequence(small, loss: str) -> None:  # type: ignore[no-untyped-def]
    settings, model, items = small(f"loss={loss}", "local_epochs=30", "optimizer=adam", "learning_rate=0.01")
    first = train_locally(model, items, settings, 0, 1).metrics["loss"]
    last = train_locally(model, items, settings, 0, 2).metrics["loss"]
    assert last < 0.7 * first


def test_full_softmax_is_the_cross_entropy_over_the_catalogue(small) -> None:  # type: ignore[no-untyped-def]
    settings, model, items = small("loss=softmax")
    model.eval()
    batch = next(batches(items, settings))
    catalogue = torch.arange(1, 61).expand(len(batch.targets), -1)
    scores = model(batch.context, 6, catalogue).scores
    valid = batch.targets > 0
    expected = torch.nn.functional.cross_entropy(scores[valid], batch.targets[valid] - 1)
    torch.testing.assert_close(objective(model, batch, settings.training)[0].ranking, expected)


def test_metrics_name_gate_and_router(small) -> None:  # type: ignore[no-untyped-def]
    settings, model, items = small()
    outcome = train_locally(model, items, settings, 0, 1)
    assert outcome.weight == len(items) - 1
    assert outcome.metrics["router-visual"] + outcome.metrics["router-text"] == pytest.approx(1.0)
    assert 0 < outcome.metrics["router-entropy"] <= 1
    assert outcome.metrics["view-visual"] > 0
    assert set(outcome.metrics) == {
        *("loss", "balance-loss", "gate", "gate-gradient", "router-visual", "router-text", "router-entropy"),
        *("view-visual", "view-text"),
    }
    settings, model, items = small("mixture=false")
    assert set(train_locally(model, items, settings, 0, 1).metrics) == {"loss"}


def test_proximal_term_by_hand_and_its_pull(small) -> None:  # type: ignore[no-untyped-def]
    parameter = torch.nn.Parameter(torch.tensor([1.0, 3.0]))
    assert Proximal(0.5, [parameter], [torch.tensor([0.0, 1.0])]).term().item() == pytest.approx(0.5 * 0.5 * 5)
    moved = []
    for mu in (0.0, 10.0):
        settings, model, items = small("local_epochs=5", "learning_rate=0.05")
        start = [parameter.detach().clone() for parameter in model.parameters()]
        train_locally(model, items, settings, 0, 1, Proximal(mu, list(model.parameters()), start))
        moved.append(
            sum(float((a - b).detach().square().sum()) for a, b in zip(model.parameters(), start, strict=True))
        )
    assert moved[1] < 0.9 * moved[0]


def test_gradients_are_clipped_the_gates_on_its_own(small) -> None:  # type: ignore[no-untyped-def]
    _, model, _ = small()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    assert clip_gradients(dict(model.named_parameters()), TrainingSettings(clip_norm=0.0, clip_gate=0.5)) == 7.0
    assert model.gate.value.grad.item() == 0.5
    clip_gradients(dict(model.named_parameters()), TrainingSettings(clip_norm=1.0))
    norm = torch.stack([parameter.grad.square().sum() for parameter in model.parameters()]).sum().sqrt()
    assert norm.item() == pytest.approx(1.0, rel=1e-4)


def test_learning_rate_warms_up() -> None:
    training = TrainingSettings(learning_rate=0.4, learning_rate_warmup_rounds=4)
    assert [warmed_up(training, number) for number in (1, 2, 4, 9)] == pytest.approx([0.1, 0.2, 0.4, 0.4])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_an_item_row_without_gradient_does_not_move(small, optimizer: str) -> None:  # type: ignore[no-untyped-def]
    _, model, _ = small()
    training = TrainingSettings(optimizer=optimizer, weight_decay=0.5)
    before = model.items.ids.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer_over(dict(model.named_parameters()), decayed(model), training, 0.1).step()
    assert torch.equal(model.items.ids.weight, before)


def test_a_loss_that_is_not_finite_says_what_to_do(small) -> None:  # type: ignore[no-untyped-def]
    settings, model, items = small()
    with torch.no_grad():
        model.items.ids.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"training\.learning_rate"):
        train_locally(model, items, settings, 0, 1)


def test_losses_are_chosen_by_name() -> None:
    positive, negative, valid = torch.tensor([[0.3]]), torch.tensor([[[0.1, -0.2]]]), torch.tensor([[True]])
    found = {
        loss: ranking_loss(positive, negative, valid, 9, TrainingSettings(loss=loss)).item()
        for loss in ("sampled_softmax", "bpr", "gbce")
    }
    assert len(set(found.values())) == 3


def test_what_a_user_weighs() -> None:
    assert [weight_of(400, rule) for rule in ("examples", "sqrt", "equal")] == [400, 200, 1]
    assert weight_of(1, "sqrt") == 10
