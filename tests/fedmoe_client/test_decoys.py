"""Decoys: the same in each round, trained as negatives are, and drawn from what the server does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deployed_client import WORDS, Deployment
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data.registry import load_dataset
from data.splits import training_part
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings
from fedmoe.settings import GROUPS
from fedmoe_client.learning.batches import WindowBatch
from fedmoe_client.learning.client import FedMoEClient
from fedmoe_client.learning.decoys import decoy_items, with_decoys
from fedmoe_client.learning.messages import perform
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.folder import ClientStore
from fedmoe_client.store.private import PrivateParameters

OWN = np.array([3, 4, 9], np.int32)


def batch(negatives: Any) -> WindowBatch:
    ids = torch.tensor([[1, 2]])
    return WindowBatch(ids, ids, None if negatives is None else torch.tensor(negatives))


def test_a_decoy_takes_the_part_of_a_negative_everywhere() -> None:
    batches = [batch([[20, 21, 20]]), batch([[22, 20, 21]])]
    found = with_decoys(batches, np.array([50]), np.random.default_rng(0))
    before, after = (np.concatenate([b.negatives.numpy().ravel() for b in part]) for part in (batches, found))  # type: ignore[union-attr]
    (replaced,) = set(before) - set(after)
    assert after.tolist() == [50 if item == replaced else item for item in before]
    assert found[0].context is batches[0].context


def test_decoys_that_were_drawn_anyway_stay() -> None:
    batches = [batch([[20, 21, 22]])]
    found = with_decoys(batches, np.array([20, 21, 22]), np.random.default_rng(0))
    assert torch.equal(found[0].negatives, batches[0].negatives)  # type: ignore[arg-type]
    (all_taken,) = with_decoys(batches, np.array([31, 32, 33, 34]), np.random.default_rng(0))
    assert set(all_taken.negatives.ravel().tolist()) < {31, 32, 33, 34}  # type: ignore[union-attr]


def test_nothing_to_hide_among() -> None:
    whole = batch(None)
    assert with_decoys([whole], np.array([5]), np.random.default_rng(0)) == [whole]


@given(count=st.integers(0, 12), num_items=st.integers(9, 30), seed=st.integers(0, 999), new=st.integers(1, 9))
@hypothesis_settings(max_examples=60, deadline=None)
def test_decoys_are_distinct_lie_outside_the_history_and_stay_when_it_grows(
    count: int, num_items: int, seed: int, new: int
) -> None:
    first = decoy_items(seed, 1, num_items, OWN, count)
    assert len(set(first.tolist())) == len(first) == min(count, num_items - 3)
    assert not set(first.tolist()) & set(OWN.tolist())
    assert set(first.tolist()) <= set(range(1, num_items + 1))
    grown = decoy_items(seed, 1, num_items, np.append(OWN, np.int32(new)), count)
    assert len(set(first.tolist()) - set(grown.tolist()) - {new}) == 0


def test_rounds_have_the_history_and_the_decoys_in_common() -> None:
    words = (
        "dataset=synthetic users=8 data.synthetic.items=3000 dim=4 attention_dim=4 blocks=0 max_seq_len=6 "
        "memory_size=6 memory_refresh=3 num_negatives=20 decoy_rows=10"
    ).split()
    settings, _ = load_settings(words)
    bench = Workbench(settings, load_dataset(settings.data, settings.seed))
    server = list(bench.take(bench.names).values())
    client = FedMoEClient(bench, 5, PrivateParameters(RecordDict()), secret=7)
    rounds = [client.fit(server, {"shared": list(GROUPS), "server-round": number})[0][-1] for number in range(1, 5)]
    common = set.intersection(*(set(ids.tolist()) for ids in rounds))
    own = training_part(bench.dataset.interactions.history(5))
    decoys = decoy_items(7, 5, 3000, own, 10)
    assert common == set(own.tolist()) | set(decoys.tolist())
    assert not np.array_equal(decoys, decoy_items(8, 5, 3000, own, 10))


def test_the_secret_is_kept_until_the_client_forgets(tmp_path: Path) -> None:
    store = ClientStore(tmp_path / "state")
    secret = store.secret()
    assert ClientStore(tmp_path / "state").secret() == secret
    assert oct((tmp_path / "state" / "secret.json").stat().st_mode)[-3:] == "600"
    store.erase()
    assert store.secret() != secret


def test_more_decoys_than_negatives_are_refused() -> None:
    with pytest.raises(FedMoEError, match=r"decoy_rows \(9\) may be at most half of training.num_negatives \(16\)"):
        load_settings(["num_negatives=16", "decoy_rows=9"])


def test_a_deployed_client_draws_its_decoys_from_its_own_secret(tmp_path: Path) -> None:
    """The secrets are given: of so few items, two that are left to chance now and then draw the same decoys."""

    def table(name: str, secret: int) -> np.ndarray:
        deployment = Deployment(tmp_path / name, words=[*WORDS, "decoy_rows=2", "item_updates=dense"])
        ClientStore(deployment.state_dir).keep_note("secret", {"number": secret})
        arrays, _ = perform(deployment.task("train", 1))
        assert arrays is not None
        return arrays["items.ids.weight"].numpy()

    first = table("one", 1)
    assert np.array_equal(first, table("same secret", 1))
    assert not np.array_equal(first, table("other secret", 2))


def test_a_deployed_client_makes_its_secret_with_its_first_training(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, words=[*WORDS, "decoy_rows=2"])
    deployment.train(1)
    assert (deployment.state_dir / "secret.json").exists()
