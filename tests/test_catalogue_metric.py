"""A metric of what all users are shown: the clients' lists reach it, and nothing else sees them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from hosts_here import ONE_PROCESS
from numpy.typing import NDArray
from safetensors.numpy import load_file

import sim
from data.registry import load_dataset
from examples.metrics.coverage import Coverage
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings
from fedmoe.metrics import LISTS, CatalogueMetric, catalogue_metrics, own_metrics
from fedmoe_client.check import metric
from fedmoe_client.check.__main__ import main
from fedmoe_client.check.metric import metric_findings
from fedmoe_client.learning.evaluation import Histories
from fedmoe_client.learning.lists import best_items
from fedmoe_server.rounds.lists import metrics_of_lists
from fedmoe_server.rounds.record import Exchange
from model.build import build_model
from strategies.rules.row_wise import ITEM_TABLE

pytestmark = pytest.mark.usefixtures("hosts_here")  # what a run does is the same wherever its hosts are
WORDS = (
    "dataset=synthetic data.synthetic.users=12 data.synthetic.items=200 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=1 warmup_rounds=1 evaluate_every=0 num_rounds=2 "
    "hosts=1 dropout=0 item_representation=id local_epochs=1 max_windows=2 "
    "evaluation.metric_parameters={coverage:{length:5}} "
    "evaluation.metrics={coverage:examples.metrics.coverage:Coverage}"
).split()
WORDS = [word.replace("{coverage:", "{coverage: ").replace("{length:", "{length: ") for word in WORDS]


@pytest.mark.parametrize("engine", [["engine=ray"], ["engine=vectorized"], ONE_PROCESS], ids=" ".join)
def test_the_coverage_of_a_run_is_that_of_its_users_lists(engine: list[str], ray_address: str, tmp_path: Path) -> None:
    given = [*WORDS, *engine, f"ray_address={ray_address}", f"save_dir={tmp_path}"]
    assert sim.main(given) == 0
    (run_dir,) = tmp_path.iterdir()
    test = json.loads((run_dir / "result.json").read_text())["test"]
    settings, _ = load_settings(WORDS)
    dataset = load_dataset(settings)
    model = build_model(settings, dataset).eval()
    arrays = load_file(run_dir / "checkpoints" / "round-000002" / "arrays.safetensors")
    model.load_state_dict({name: torch.from_numpy(each) for name, each in arrays.items()}, strict=False)
    shown = set()
    for user in range(12):
        met, target = np.split(dataset.interactions.history(user).astype(np.int64), [-1])
        context = np.concatenate([np.zeros(10, np.int64), met])[-10:]
        with torch.inference_mode():
            candidates = torch.arange(1, 201)
            scores = model.rank_scores(torch.from_numpy(context)[None], candidates[None])[0].numpy()
        if target not in met:  # where it was met before, all items met are candidates like it
            scores[met - 1] = -np.inf
        shown |= set(np.argsort(-scores, kind="stable")[:5].tolist())
    assert test["global"]["coverage"] == len(shown) / 200
    assert 5 / 200 < len(shown) / 200 < 60 / 200  # users are shown different items, and share some
    assert test["personalised"]["coverage"] > 0
    assert "coverage" not in json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])["train"]


class Fixed:
    """One user's history."""

    num_items = 6

    def history(self, user: int) -> NDArray[np.int32]:
        return np.array([1, 2, 3, 4], np.int32)


def test_the_best_items_are_those_not_met_the_held_out_one_among_them() -> None:
    known: Histories = Fixed()

    def scorer(contexts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        assert contexts.tolist() == [[2, 3]]
        return np.array([0, 9, 9, 9, 2, 3, 2], np.float32)[candidates]

    assert best_items(scorer, known, 0, "test", 3, 2).tolist() == [5, 4, 6]  # 4 is held out; ties by number
    assert best_items(scorer, known, 0, "test", 4, 2).tolist()[:3] == [5, 4, 6]


def answer(node: int, **lists: list[int]) -> Message:
    content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "hr@10": 0.5}), LISTS: MetricRecord(dict(lists))})
    request = Message(RecordDict(), dst_node_id=node, message_type="evaluate")
    return Message(content, reply_to=request)


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.parametrize("bad", [[1, 2], [1, 2, 7], [0, 1, 2], [], [0.5, 1.0, 2.0]])
def test_lists_are_taken_out_and_bad_ones_refused(bad: list[int]) -> None:
    good = answer(1, **{"items": [1, 2, 3, 4, 5, 6], "global-items": [1, 2, 3, 1, 2, 3]})
    other = answer(2, **{"items": bad, "global-items": [1, 2, 3]})
    arrays = ArrayRecord({ITEM_TABLE: _array((7, 2))})
    outcome = Exchange(2, [good, other], (), 0, 0)
    taken, found = metrics_of_lists(outcome, "test", lambda: {1: 10, 2: 20}, {"coverage": Coverage(3)}, arrays)
    assert found == {"coverage": 1.0, "global-coverage": 0.5}
    assert [reply.has_content() for reply in taken.replies] == [True, False]
    assert set(taken.replies[0].content) == {"metrics"}
    (failure,) = taken.failures
    assert failure.client == 20 and "its lists are not of 3 items from 1 to 6" in failure.reason


def _array(shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
    from flwr.app import Array

    return Array(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["privacy.epsilon=8"], "coverage needs the items that each user is shown, which differential privacy"),
        (["privacy.sum_bits=16"], "which differential privacy and sums hide"),
        (["evaluation.protocol=sampled"], "set evaluation.protocol to full"),
    ],
)
def test_a_run_that_hides_or_lacks_the_lists_is_refused(words: list[str], complaint: str) -> None:
    settings, _ = load_settings([*WORDS, *words])
    with pytest.raises(FedMoEError, match=complaint):
        catalogue_metrics(settings)
    assert own_metrics(settings.evaluation) == {}


class KeepsAll(CatalogueMetric):
    def __init__(self) -> None:
        self.seen: set[int] = set()

    def of(self, lists: NDArray[np.int64], num_items: int) -> float:
        self.seen |= set(lists[0].tolist())
        return len(self.seen) / num_items


class NoLength(CatalogueMetric):
    length = 0

    def of(self, lists: NDArray[np.int64], num_items: int) -> float:
        return 1.0


class Nothing(CatalogueMetric):
    def of(self, lists: NDArray[np.int64], num_items: int) -> float:
        return float("nan")


class Drawn(CatalogueMetric):
    def of(self, lists: NDArray[np.int64], num_items: int) -> float:
        return float(np.random.random())


DEFECTS = {KeepsAll: "calls are apart", NoLength: "length", Nothing: "runs", Drawn: "chance has no part in it"}


@pytest.mark.parametrize("defective", DEFECTS)
def test_a_defect_is_found_by_its_demand(defective: type[CatalogueMetric]) -> None:
    found = [f.demand for f in metric_findings(f"{__name__}:{defective.__name__}", {}) if f.holds is False]
    assert DEFECTS[defective] in found
    assert set(DEFECTS.values()) == {*metric.FIRST_OF_LISTS, *metric.THEN_OF_LISTS}


def test_coverage_meets_all_demands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metric", "examples.metrics.coverage:Coverage", "length=20"]) == 0
    assert "FAILS" not in capsys.readouterr().out
