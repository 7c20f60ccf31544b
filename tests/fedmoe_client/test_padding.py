"""Work beside a client's own: hand-worked lengths, and the same work for all histories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed_client import WORDS, Deployment

from fedmoe.loading import load_settings
from fedmoe.settings import Settings
from fedmoe.sums.terms import Terms
from fedmoe_client.device.padding import lacking_of_ranking, lacking_of_training
from fedmoe_client.device.secure import to_next_step
from fedmoe_client.device.task import perform
from fedmoe_client.learning.client import FedMoEClient


def settings(*words: str) -> Settings:
    return load_settings(["max_seq_len=10", "memory_size=20", *words])[0]


@pytest.mark.parametrize(
    ("own", "most", "lacking"),
    [
        (3, 2, 23),  # no target: one window, so two whole ones beside it
        (13, 2, 23),  # ten targets fill one window
        (14, 2, 8),  # eleven ask for two: half a window beside them
        (400, 2, 8),  # two are drawn of its forty
        (13, 4, 43),
        (24, 4, 23),  # three of four windows
        (13, 0, 8),  # no limit: as many as the next power of two
        (24, 0, 23),
        (43, 0, 8),
        (44, 0, 43),  # five of eight
    ],
)
def test_own_and_made_up_histories_are_one_window_more_than_a_round_trains(own: int, most: int, lacking: int) -> None:
    assert lacking_of_training(own, settings(f"max_windows={most}")) == lacking


def test_one_window_is_all_where_one_is_drawn() -> None:
    assert lacking_of_training(400, settings("windows=random", "max_windows=1")) == 8


@pytest.mark.parametrize(("own", "lacking"), [(3, 22), (12, 13), (22, 3), (90, 3)])
def test_own_and_made_up_histories_look_back_over_the_same_number_of_items(own: int, lacking: int) -> None:
    assert lacking_of_ranking(own, settings()) == lacking


@pytest.mark.parametrize(
    ("passed", "step", "left"), [(0.1, 0.25, 0.15), (0.25, 0.25, 0.0), (0.6, 0.25, 0.15), (7, 0, 0)]
)
def test_answers_are_sent_in_steps(passed: float, step: float, left: float) -> None:
    assert to_next_step(passed, step) == pytest.approx(left)


def train_for_a_sum(folder: Path, *words: str, **node: Any) -> dict[str, bytes]:
    deployment = Deployment(folder, words=[*WORDS, "privacy.sum_bits=16", *words])
    task = deployment.task("train", 1, **node)
    terms = Terms(bits=16, clients=5, norm=2.0, weight=10).to_config()
    arrays, _, _ = perform(replace(task, config={**task.config, **terms}))
    assert arrays is not None
    return {name: array.tobytes() for name, array in arrays.items()}


def test_the_made_up_history_changes_no_bit_and_its_failure_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained, fit = [], FedMoEClient.fit

    def watched(client: FedMoEClient, *given: Any) -> Any:
        trained.append(len(client.histories.history(client.users[0])))
        if len(trained) == 5:
            raise ValueError("no training on this")
        return fit(client, *given)

    monkeypatch.setattr(FedMoEClient, "fit", watched)
    alone = train_for_a_sum(tmp_path / "alone", padding=False)
    assert train_for_a_sum(tmp_path / "padded") == alone
    assert len(trained) == 3 and trained[0] == trained[1] != trained[2]
    assert train_for_a_sum(tmp_path / "fails") == alone
    assert len(trained) == 5 and "length: ValueError: no training on this" in caplog.text


def test_a_client_of_ones_own_is_not_run_on_a_made_up_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmoe_client.device.task.other_client", lambda *_: pytest.fail("made up"))
    train_for_a_sum(tmp_path, "training.client=paper_clients:Dynamic")
