"""The node config: what a client is told when it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmoe.errors import FedMoEError
from fedmoe_client.device.node import Node, node_from


def test_a_simulated_client_has_a_number_and_nothing_else() -> None:
    assert node_from({"partition-id": 4, "num-partitions": 9}) == Node(4)


def test_a_deployed_client_is_warm_unless_told_otherwise() -> None:
    config = {"history": "/h.txt", "state-dir": "/s", "catalogue": "/c"}
    assert node_from(config) == Node(None, Path("/h.txt"), Path("/c"), Path("/s"), warm=True)
    assert not node_from({**config, "warm": False}).warm


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "give partition-id"),
        ({"history": "/h.txt"}, "needs state-dir"),
        ({"partition-id": "3"}, "must be a whole number"),
        ({"partition-id": True}, "must be a whole number"),
        ({"partition-id": -1}, "must not be negative"),
        ({"partition-id": 1, "history": "h.txt"}, "must be an absolute path"),
        ({"partition-id": 1, "warm": True}, "needs state-dir"),
        ({"partition-id": 1, "histroy": "/h"}, "did you mean 'history'"),
        ({"partition-id": 1, "keep-torch": 0}, "must be a number of seconds"),
        ({"partition-id": 1, "keep-torch": True}, "must be a number of seconds"),
        ({"partition-id": 1, "keep-torch": 2.5}, "must be a number of seconds"),
        ({"partition-id": 1, "answer-after": "1"}, "must be a number of seconds"),
        ({"partition-id": 1, "answer-after": -1}, "must be a number of seconds"),
        ({"partition-id": 1, "answer-after": float("nan")}, "must be a number of seconds"),
        ({"partition-id": 1, "padding": 1}, "must be true or false"),
    ],
)
def test_what_cannot_be_used_is_refused(config: dict[str, str | int | float | bool], complaint: str) -> None:
    with pytest.raises(FedMoEError, match=complaint):
        node_from(config)


def test_keys_of_other_apps_are_left_alone() -> None:
    assert node_from({"partition-id": 1, "gpu": "none"}) == Node(1)
