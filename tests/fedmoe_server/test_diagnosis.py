"""Each advice hangs on its sign: a healthy run gets none, a run with one fault gets just that one."""

from __future__ import annotations

from typing import Any

import pytest

from fedmoe_server.report.diagnosis import findings, signs

BASELINES = {"popularity": {"test": {"ndcg@10": 0.04}}}


def records(
    count: int = 40, validation: Any = lambda n: 0.1 + 0.001 * min(n, 30), **train: Any
) -> list[dict[str, Any]]:
    found = []
    for number in range(1, count + 1):
        numbers = {
            "loss": 1.0, "gate": 0.1 + 0.01 * number, "gate-gradient": 0.01, "router-visual": 0.4,
            "router-semantic": 0.6, "router-entropy": 0.9, "view-visual": 0.5, "view-semantic": 0.5,
        }  # fmt: skip
        numbers |= {name.replace("_", "-"): value for name, value in train.items()}
        evaluated = {"ndcg@10": validation(number)} if number % 5 == 0 else None
        found.append({"round": number, "train": numbers, "validation": evaluated, "clients": 10, "failed": []})
    return found


def result(own: float = 0.12, common: float = 0.12, best: int = 30) -> dict[str, Any]:
    return {"test": {"personalised": {"ndcg@10": own}, "global": {"ndcg@10": common}}, "best_round": best}


def test_a_healthy_run_gets_no_advice() -> None:
    assert findings(records(), result(), BASELINES) == []
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
        (records(router_semantic=0.01), result(), "router has left the semantic expert", "training.balance_weight"),
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
    run = records()
    for record in run:
        record["failed"] = [{"stage": "train"}, {"stage": "validation"}]
    assert "40 of 400 replies to training failed" in findings(run, result(), BASELINES)[0]


def test_signs_compare_the_beginning_with_the_end() -> None:
    first, last = signs(records())["gate"]
    assert (first, last) == pytest.approx((0.205, 0.405))
    assert "gate" not in signs([{"train": {"loss": 1.0}}])
