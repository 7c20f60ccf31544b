from __future__ import annotations

import pytest

from fedmoe.errors import FedMoEError
from strategies import AggregationSchedule

GROUPS = {"embedding": ["e"], "backbone": ["b1", "b2"], "experts.one": [], "gate": ["g"]}


def test_the_product_order_shares_all_and_then_a_part() -> None:
    schedule = AggregationSchedule(GROUPS, 2, list(GROUPS), ["backbone", "embedding"])
    assert schedule.shared_names(1) == schedule.shared_names(2) == ["e", "b1", "b2", "g"]
    assert schedule.private_names(2) == []
    assert schedule.shared_groups(3) == ["embedding", "backbone"]
    assert schedule.shared_names(3) == ["e", "b1", "b2"]
    assert schedule.private_names(3) == ["g"]


def test_the_reference_order_shares_a_part_and_then_all() -> None:
    schedule = AggregationSchedule(GROUPS, 1, ["embedding", "backbone"], list(GROUPS))
    assert schedule.private_names(1) == ["g"]
    assert schedule.shared_names(2) == ["e", "b1", "b2", "g"]


def test_without_warmup_the_first_round_is_shared() -> None:
    assert AggregationSchedule(GROUPS, 0, list(GROUPS), ["gate"]).shared_names(1) == ["g"]


def test_a_group_without_parameters_may_be_named() -> None:
    assert AggregationSchedule(GROUPS, 0, [], ["experts.one", "gate"]).shared_names(1) == ["g"]


def test_a_pattern_names_several_groups_or_none() -> None:
    groups = {**GROUPS, "experts.two": ["t"]}
    assert AggregationSchedule(groups, 0, [], ["gate", "experts.*"]).shared_groups(1) == [
        "experts.one",
        "gate",
        "experts.two",
    ]
    assert AggregationSchedule({"gate": ["g"]}, 0, [], ["gate", "experts.*"]).shared_groups(1) == ["gate"]


@pytest.mark.parametrize(
    ("groups", "rounds", "warmup", "shared", "message"),
    [
        (GROUPS, 1, ["gates"], ["gate"], "federation.warmup: unknown group 'gates' - did you mean 'gate'"),
        (GROUPS, 0, [], ["router"], "federation.shared: unknown group 'router'; groups are embedding, backbone"),
        ({"a": ["w"], "b": ["w"]}, 0, [], ["a"], "parameter 'w' is in 2 groups"),
        (GROUPS, 0, ["gate"], [], "federation.shared: these groups hold no parameter"),
        (GROUPS, 3, ["experts.one"], ["gate"], "federation.warmup: these groups hold no parameter"),
        (GROUPS, 3, ["gate"], [], "federation.shared: these groups hold no parameter"),
    ],
)
def test_errors_name_the_key(
    groups: dict[str, list[str]], rounds: int, warmup: list[str], shared: list[str], message: str
) -> None:
    with pytest.raises(FedMoEError, match=message.replace("(", r"\(")):
        AggregationSchedule(groups, rounds, warmup, shared)
