"""What the guards did, counted and named from the lines of metrics.jsonl."""

from __future__ import annotations

from typing import Any

from fedmoe_server.report.guard_report import failed_rounds, guard_table, rejections


def record(number: int, *reasons: tuple[int, str], **more: Any) -> dict[str, Any]:
    failed = [
        {"client": client, "node": client + 100, "stage": "train", "reason": reason} for client, reason in reasons
    ]
    return {"round": number, "failed": failed} | more


def test_kinds_are_counted_and_clients_named() -> None:
    finite = "reply refused: parameter '{}' has a value that is not finite"
    records = [
        record(1, (4, finite.format("a.weight")), (11, finite.format("b.0.bias")), (5, "OSError: disk gone")),
        record(3, (4, finite.format("a.weight")), (7, "reply refused: parameter 'a' has shape [3, 2], expected [3]")),
        record(4, (7, "reply refused: parameter 'b' has shape [2], expected [7]"), failure="round 4, train: only 0"),
        record(5, (2, "reply refused: metric 'num-examples', its weight, is 1e9, above the limit of 100000")),
        record(
            6,
            clipped=[{"client": None, "node": 106, "norm": 9.0, "bound": 1.0}],
            dropped=[{"client": 1, "node": 101}],
        ),
    ]
    assert guard_table(records) == [
        ["refused: parameter ... has a value that is not finite", "3", "4, 11", "1 to 3"],
        ["refused: parameter ... has shape ..., expected ...", "2", "7", "3 to 4"],
        ["refused: metric ..., its weight, is ..., above the limit of ...", "1", "2", "5 to 5"],
        ["scaled down: update longer than the bound", "1", "node 106", "6 to 6"],
        ["dropped: late or repeated", "1", "1", "6 to 6"],
    ]
    assert len(rejections(records)) == 8
    assert failed_rounds(records) == ["round 4, train: only 0"]


def test_many_clients_and_none() -> None:
    records = [record(1, *((client, "reply refused: metric 'loss' is missing") for client in range(15)))]
    (row,) = guard_table(records)
    assert row[1:3] == ["15", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more"]
    assert guard_table([record(1)]) == []
