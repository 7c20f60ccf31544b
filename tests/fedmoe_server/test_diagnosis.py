"""Each advice hangs on its sign: a healthy run gets none, a run with one fault gets just that one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedmoe.errors import FailureKind
from fedmoe_server.report.diagnosis import findings, guard_table, signs
from fedmoe_server.rounds.record import Clipped, Failure, Result, RoundRecord, Sender

BASELINES = {"popularity": {"test": {"ndcg@10": 0.04}}}


def records(count: int = 40, validation: Any = lambda n: 0.1 + 0.001 * min(n, 30), **train: Any) -> list[RoundRecord]:
    found = []
    for number in range(1, count + 1):
        numbers = {
            "loss": 1.0, "gate": 0.1 + 0.01 * number, "gate-gradient": 0.01, "router-visual": 0.4,
            "router-text": 0.6, "router-entropy": 0.9, "view-visual": 0.5, "view-text": 0.5,
        }  # fmt: skip
        numbers |= {name.replace("_", "-"): value for name, value in train.items()}
        evaluated = {"ndcg@10": validation(number)} if number % 5 == 0 else None
        found.append(RoundRecord(number, train=numbers, validation=evaluated, clients=10))
    return found


def result(own: float = 0.12, common: float = 0.12, best: int = 30) -> Result:
    return Result(test={"personalised": {"ndcg@10": own}, "global": {"ndcg@10": common}}, best_round=best)


def test_a_healthy_run_gets_no_advice() -> None:
    assert findings(records(), result(), BASELINES) == []
    assert findings(records(clipped=0.4), result(), BASELINES) == []
    assert findings([], result(), BASELINES) == []


@pytest.mark.parametrize(
    ("run", "end", "sign", "remedy"),
    [
        (records(), result(0.03, 0.03), "no better than popularity", "federation.num_rounds"),
        (records(), result(own=0.10), "Private parameters cost", "federation.shared=all"),
        (records(validation=lambda n: 0.2 - 0.002 * n), result(best=5), "overfits", "model.dropout"),
        (records(), result(best=40), "last evaluation was the best", "num_rounds"),
        (records(gate=0.1), result(), "gate has not moved", "model.gate_init"),
        (records(gate=0.1, gate_gradient=0.0), result(), "nothing reaches it", "outputs"),
        (records(gate=-0.2), result(), "gate is negative", "features"),
        (records(gate=3.0), result(), "gate is large", "training.clip_gate"),
        (records(view_visual=0.0), result(), "visual expert says nothing", "features"),
        (records(clipped=0.6), result(), "60% of the updates, by weight, were longer", "privacy.update_norm"),
        (records(router_text=0.01), result(), "router has left the text expert", "training.balance_weight"),
    ],
)
def test_each_sign_has_its_advice(run: Any, end: Any, sign: str, remedy: str) -> None:
    found = findings(run, end, BASELINES)
    assert any(sign in line and remedy in line for line in found)
    allowed = 2 if "gate is" in sign else 1  # a constant gate has not moved, either
    assert len(found) <= allowed


@pytest.mark.parametrize("rounds", [2, 10, 20, 30])
def test_a_gate_that_moves_is_no_sign_in_a_short_run(rounds: int) -> None:
    assert findings(records(count=rounds), result(best=1), BASELINES) == []


def test_many_failures_are_pointed_out() -> None:
    failed = tuple(Failure(3, 1003, stage, "OSError") for stage in ("train", "validation"))
    run = [replace(record, failed=failed) for record in records()]
    assert "40 of 400 replies to training failed" in findings(run, result(), BASELINES)[0]


def test_signs_compare_the_beginning_with_the_end() -> None:
    first, last = signs(records())["gate"]
    assert (first, last) == pytest.approx((0.205, 0.405))
    assert "gate" not in signs([RoundRecord(1, train={"loss": 1.0})])


def refused(number: int, *reasons: tuple[int, str], **more: Any) -> RoundRecord:
    failed = [Failure(client, client + 100, "train", reason, FailureKind.REFUSED) for client, reason in reasons]
    return RoundRecord(number, failed=(*failed, *more.pop("failed", ())), **more)


def test_kinds_of_bad_replies_are_counted_and_clients_named() -> None:
    finite = "parameter '{}' has a value that is not finite"
    disk = Failure(5, 105, "train", "OSError: disk gone")
    shaped = "parameter '{}' has shape {}, expected {}"
    records = [
        refused(1, (4, finite.format("a.weight")), (11, finite.format("b.0.bias")), failed=(disk,)),
        refused(3, (4, finite.format("a.weight")), (7, shaped.format("a", [3, 2], [3]))),
        refused(4, (7, shaped.format("b", [2], [7])), failure="round 4, train: only 0"),
        refused(5, (2, "metric 'num-examples', its weight, is 1e9, above the limit of 100000")),
        RoundRecord(6, clipped=(Clipped(None, 106, 9.0, 1.0),), dropped=(Sender(1, 101),)),
    ]
    assert guard_table(records) == [
        ["refused: parameter ... has a value that is not finite", "3", "4, 11", "1 to 3"],
        ["refused: parameter ... has shape ..., expected ...", "2", "7", "3 to 4"],
        ["refused: metric ..., its weight, is ..., above the limit of ...", "1", "2", "5 to 5"],
        ["scaled down: update longer than the bound", "1", "node 106", "6 to 6"],
        ["dropped: late or repeated", "1", "1", "6 to 6"],
    ]


def test_many_clients_in_a_row_and_none() -> None:
    records = [refused(1, *((client, "metric 'loss' is missing") for client in range(15)))]
    (row,) = guard_table(records)
    assert row[1:3] == ["15", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more"]
    assert guard_table([refused(1)]) == []
