"""Work beside a client's own: hand-worked lengths, and the same work for all histories."""

from __future__ import annotations

import pytest

from fedmoe.loading import load_settings
from fedmoe.settings import Settings
from fedmoe_client.device.padding import lacking_of_ranking, lacking_of_training
from fedmoe_client.device.secure import to_next_step


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
