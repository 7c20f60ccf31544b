"""Training on the touched part of the catalogue: the numbers of the whole, and a cost that does not depend on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from plain_clients import train_locally

from data.registry import load_dataset
from data.sampling import training_part
from fedmoe.loading import load_settings
from fedmoe.modalities import GROUPS
from fedmoe_client.learning.additions import Proximal
from fedmoe_client.learning.client import ROWS, TABLE, FedMoEClient, in_table, travels_as_rows
from fedmoe_client.learning.training import renumbered, touched_items
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.private import InContext
from model.losses import WindowBatch
from model.sasrec import substituted, substitutes

SMALL = (
    "dataset=synthetic users=8 data.synthetic.items=400 dim=8 attention_dim=8 blocks=1 max_seq_len=6 memory_size=6 "
    "memory_refresh=3 num_negatives=5 batch_size=2 learning_rate=0.3 local_epochs=2"
).split()


def bench_of(*words: str) -> Workbench:
    settings, _ = load_settings([*SMALL, *words])
    return Workbench(settings, load_dataset(settings))


def batch(context: Any, targets: Any, negatives: Any) -> WindowBatch:
    return WindowBatch(*(None if ids is None else torch.tensor(ids) for ids in (context, targets, negatives)))  # type: ignore[arg-type]


def test_touched_items_by_hand() -> None:
    first, second = batch([[0, 7, 3]], [[3, 9]], [[5, 5]]), batch([[7, 9, 2]], [[0, 2]], [[8, 1]])
    touched = touched_items([first, second], 9)
    assert touched.tolist() == [0, 1, 2, 3, 5, 7, 8, 9]
    found = renumbered(first, touched)
    assert found.negatives is not None
    assert (found.context.tolist(), found.targets.tolist()) == ([[0, 5, 3]], [[3, 7]])
    assert found.negatives.tolist() == [[4, 4]]


def test_a_loss_over_the_catalogue_touches_all_of_it() -> None:
    whole = batch([[1, 2]], [[2, 3]], None)
    assert touched_items([whole], 4).tolist() == [0, 1, 2, 3, 4]
    assert renumbered(whole, torch.arange(5)) is whole


def test_rows_travel_where_they_are_smaller() -> None:
    table = np.zeros((10, 4), np.float32)  # 160 bytes; a row and its id have 24
    assert travels_as_rows(table, np.arange(7))
    assert not travels_as_rows(table, np.arange(8))


def test_rows_in_their_table_by_hand() -> None:
    table = np.zeros((4, 2), np.float32)
    found = in_table(table, np.array([0, 2]), np.array([[0, 0], [5, 6]], np.float32))
    assert found.tolist() == [[0, 0], [0, 0], [5, 6], [0, 0]]
    assert not table.any()


def test_substitutes_hold_the_touched_rows() -> None:
    bench = bench_of()
    table = bench.take([TABLE])[TABLE]
    touched = torch.tensor([0, 3, 399])
    found = substitutes(bench.model.features, table, touched)
    assert set(found) == {TABLE, *(f"features.{n}.{k}" for n in ("visual", "text") for k in ("values", "present"))}
    assert np.array_equal(found[TABLE].numpy(), table[[0, 3, 399]])
    values = bench.model.features["visual"].values
    assert torch.equal(found["features.visual.values"], values[[0, 3, 399]])
    with substituted(bench.model, found):
        assert bench.model.items.ids.weight.shape == (3, 8)
        assert bench.model.features["visual"].values.shape[0] == 3
        assert list(dict(bench.model.named_parameters())) == bench.names
    assert bench.model.features["visual"].values is values
    assert bench.model.items.ids.weight is bench.parameters[TABLE]


def test_a_functional_call_takes_the_substitutes() -> None:
    bench = bench_of("dropout=0")
    ids = batch([[0] * 6 + [1, 2, 30, 4, 5, 60]], [[2, 30, 4, 5, 60, 7]], [[8, 90]])
    touched = touched_items([ids], 400)
    small = renumbered(ids, touched)
    found = substitutes(bench.model.features, bench.take([TABLE])[TABLE], touched)
    assert ids.negatives is not None and small.negatives is not None
    whole = bench.model(ids.context, 6, torch.cat([ids.targets, ids.negatives], dim=1)).scores
    candidates = torch.cat([small.targets, small.negatives], dim=1)
    part = torch.func.functional_call(bench.model, found, (small.context, 6, candidates)).scores
    torch.testing.assert_close(part, whole, rtol=0, atol=0)


def dense_fit(bench: Workbench, user: int, mu: float) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Train the whole model in place: what a client did before it trained on a part."""
    start = [parameter.detach().clone() for parameter in bench.model.parameters()]
    proximal = Proximal(mu, list(bench.model.parameters()), start) if mu else None
    items = training_part(bench.dataset.interactions.history(user))
    outcome = train_locally(bench.model, items, bench.settings, user, 3, proximal)
    return bench.take(bench.names), outcome.metrics


def fit(bench: Workbench, user: int, shared: tuple[str, ...] = GROUPS, **config: Any) -> tuple[dict[str, Any], Any]:
    state = RecordDict()
    client = FedMoEClient(bench, user, InContext(state))
    server = list(bench.take(bench.names).values())
    arrays, _, metrics = client.fit(server, {"shared": list(shared), "server-round": 3, **config})
    found = dict(zip(client.reply_names(shared, arrays), arrays, strict=True))
    return found | InContext(state).load(), metrics


def whole_table(bench: Workbench, arrays: dict[str, Any]) -> np.ndarray:
    start = bench.take([TABLE])[TABLE]
    return in_table(start, arrays[ROWS], arrays[TABLE]) if ROWS in arrays else np.asarray(arrays[TABLE])


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("optimizer=adam", "learning_rate=0.01", "weight_decay=0.1"),
        ("momentum=0.9", "weight_decay=0.1", "loss=bpr"),
        ("optimizer=adamw", "learning_rate=0.01", "loss=gbce", "item_representation=id"),
        ("loss=softmax",),
        ("mixture=false",),
        ("fusion=competitive", "score=cosine"),
        ("clip_norm=0", "proximal"),
    ],
)
def test_training_on_a_part_is_training_on_the_whole(words: tuple[str, ...]) -> None:
    mu = 0.5 if "proximal" in words else 0.0
    words = tuple(word for word in words if word != "proximal")
    for user in (0, 5):
        bench = bench_of(*words)
        expected, numbers = dense_fit(bench_of(*words), user, mu)
        arrays, metrics = fit(bench, user, **{"proximal-mu": mu})
        assert (ROWS in arrays) == ("loss=softmax" not in words)
        for name, values in expected.items():
            found = whole_table(bench, arrays) if name == TABLE else arrays[name]
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-6, err_msg=name)
        assert metrics == pytest.approx(numbers, abs=1e-6)


def test_a_private_table_stays_whole_at_the_client_and_none_of_it_travels() -> None:
    bench = bench_of()
    arrays, _ = fit(bench, 2, tuple(group for group in GROUPS if group != "embedding"))
    assert ROWS not in arrays
    expected, _ = dense_fit(bench_of(), 2, 0.0)
    np.testing.assert_allclose(arrays[TABLE], expected[TABLE], rtol=0, atol=1e-6)


def test_dense_updates_on_request() -> None:
    arrays, _ = fit(bench_of("item_updates=dense"), 2)
    rows, _ = fit(bench := bench_of(), 2)
    assert ROWS not in arrays and arrays[TABLE].shape == (401, 8)
    assert np.array_equal(arrays[TABLE], whole_table(bench, rows))


def test_the_model_has_its_catalogue_again_when_training_fails() -> None:
    bench = bench_of()
    server = bench.take(bench.names)
    server[TABLE][1:] = np.nan
    client = FedMoEClient(bench, 1, InContext(RecordDict()))
    with pytest.raises(FloatingPointError):
        client.fit(list(server.values()), {"shared": list(GROUPS), "server-round": 1})
    assert bench.model.items.ids.weight is bench.parameters[TABLE]


@given(seed=st.integers(0, 10**6), size=st.integers(1, 4))
@hypothesis_settings(max_examples=50, deadline=None)
def test_touched_rows_give_back_every_id(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [batch(*(rng.integers(0, 30, size=(2, length)) for length in (6, 3, 4))) for _ in range(size)]
    touched = touched_items(drawn, 29)
    assert touched[0] == 0 and (touched.diff() > 0).all()
    for one in drawn:
        small = renumbered(one, touched)
        for field in ("context", "targets", "negatives"):
            assert torch.equal(touched[getattr(small, field)], getattr(one, field))


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_a_client_costs_the_same_whatever_the_catalogue(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(f"data.synthetic.items={size}", "data.synthetic.feature_dim=4")
    server = list(bench.take(bench.names).values())
    largest = 0
    new = torch.nn.Parameter.__new__

    def watched(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        nonlocal largest
        largest = max(largest, len(data))
        return new(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", watched)
    client = FedMoEClient(bench, 1, InContext(RecordDict()))
    arrays, _, _ = client.fit(server, {"shared": list(GROUPS), "server-round": 1})
    touched = len(arrays[-1])
    assert largest == touched + 1 < 300
    sent = sum(array.nbytes for array in arrays)
    if size == 100_000:
        assert sent <= sum(array.nbytes for array in server) / 10
