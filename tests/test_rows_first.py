"""Two secure sums where few rows of the item table are touched: their rows are counted, then added up alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray
from test_deployed_run import FIRST_NODE
from test_prepared_sums import FRESH, PREPARED, phases
from test_secure_run import SecureLoopback, arrays_of, gone, model_of, results

from fedmoe.errors import FedMoEError
from fedmoe.secure.phases import RECORD, UNION
from fedmoe.wire import ROWS, pack, unpack
from fedmoe_server.rounds import parts

FEW = ("data.synthetic.items=800", "max_seq_len=10", "num_negatives=2", "item_representation=id")
ON = (*FEW, "privacy.rows_first=on")


def unions(grid: SecureLoopback) -> list[NDArray[np.int64]]:
    """Return the rows of the item table at which each training round was added up."""
    found = {}
    for message in grid.sent:
        if UNION in (record := message.content.config_records.get(RECORD, {})):
            (found[bytes(record[UNION])],) = unpack(record[UNION]).values()
    return list(found.values())


def masked_bytes(grid: SecureLoopback) -> list[int]:
    """Return how many bytes each masked vector of a training round had, of client 0."""
    return [
        len(reply.content.config_records[RECORD]["words"])
        for reply in grid.received
        if reply.metadata.message_type == "train.masked" and reply.metadata.src_node_id == FIRST_NODE
    ]


def test_two_sums_give_the_bits_of_one_and_of_the_simulation(tmp_path: Path) -> None:
    two = SecureLoopback(tmp_path / "two", *ON)
    one = SecureLoopback(tmp_path / "one", *FEW, "privacy.rows_first=off")
    simulated = SecureLoopback(tmp_path / "simulation", *FEW, simulated=True)
    runs = [two.serve(), one.serve(), simulated.serve()]
    assert arrays_of(runs[0]) == arrays_of(runs[1]) == arrays_of(runs[2])
    assert results(runs[0])["test"] == results(runs[1])["test"] == results(runs[2])["test"]
    assert phases(two)[:6] == [FRESH, *[PREPARED] * 5]  # three rounds of two sums
    assert phases(one)[:3] == [FRESH, *[PREPARED] * 2]
    assert all(0 < len(rows) < 400 for rows in unions(two))
    rows, values = masked_bytes(two)[:2]
    assert rows == 801  # a byte for each row, and the padding
    assert 2 * (rows + values) < masked_bytes(one)[0]
    state = two.state_dir(0)
    assert not list(state.glob("summing*"))


def test_counting_first_begins_where_the_round_before_would_have_been_spared_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = SecureLoopback(tmp_path / "megabyte", *FEW)
    least.serve()
    assert unions(least) == []  # so small a table is not worth a second sum
    monkeypatch.setattr(parts, "LEAST_SPARED", 1000)
    auto = SecureLoopback(tmp_path / "auto", *FEW)
    run = auto.serve()
    assert phases(auto)[:5] == [FRESH, *[PREPARED] * 4]  # one sum, and then two of two
    assert len(unions(auto)) == 2
    assert arrays_of(run) == arrays_of(SecureLoopback(tmp_path / "simulation", *FEW, simulated=True).serve())
    many = SecureLoopback(tmp_path / "many", "data.synthetic.items=60", "num_negatives=64")
    many.serve()
    assert unions(many) == []  # nearly all rows are touched


def test_a_table_of_which_nearly_all_rows_are_touched_is_added_up_whole(tmp_path: Path) -> None:
    words = ("data.synthetic.items=60", "num_negatives=64")
    grid = SecureLoopback(tmp_path / "deployment", *words, "privacy.rows_first=on")
    run = grid.serve()
    assert [len(rows) for rows in unions(grid)] == [61]
    assert arrays_of(run) == arrays_of(SecureLoopback(tmp_path / "simulation", *words, simulated=True).serve())


@pytest.mark.parametrize("occurrence", [1, 2])
def test_a_client_that_vanishes_before_either_vector_costs_its_own_part_alone(tmp_path: Path, occurrence: int) -> None:
    """Gone before the rows it is as if it had not trained; gone between the two it is not in the update either."""
    seen: list[str] = []

    def fails(grid: SecureLoopback, message: Message) -> bool:
        if message.metadata.dst_node_id != FIRST_NODE + 3 or message.metadata.message_type != "train.masked":
            return False
        seen.append("masked")
        return len(seen) == occurrence

    grid = SecureLoopback(tmp_path / "deployment", *ON, "num_rounds=1", "evaluate_every=0", fails=[fails])
    run = grid.serve()
    without = SecureLoopback(
        tmp_path / "simulation", *FEW, "num_rounds=1", "evaluate_every=0", simulated=True, fails=[gone(3, 1, "masked")]
    )
    assert model_of(run) == model_of(without.serve())


def test_differential_privacy_has_nothing_to_count(tmp_path: Path) -> None:
    """Noise is in every row; the terms of training and evaluation differ, and prepared sums do with both."""
    private = ("privacy.noise_multiplier=0.5", "privacy.side=distributed", "privacy.sum_bits=14", "privacy.dropouts=0")
    words = (*FEW, *private, "min_reply_fraction=1", "data.synthetic.users=12", "privacy.rows_first=on")
    grid = SecureLoopback(tmp_path / "deployment", *words, users=12)
    grid.serve()
    first, *others = phases(grid)
    assert first == ["keys", "shares", "masked", "survivors", "unmasking"]  # a sparse graph, since nobody may vanish
    assert others == [["masked", "survivors", "unmasking"]] * len(others)
    assert [len(rows) for rows in unions(grid)] == [801]


class OtherUnion(SecureLoopback):
    """A server that asks client 2 for other rows than the others."""

    rows: Any = np.array([1, 2, 3])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        asked = list(messages)
        for message in asked:
            record = message.content.config_records.get(RECORD)
            if record is not None and UNION in record and message.metadata.dst_node_id == FIRST_NODE + 2:
                (name,) = unpack(record[UNION])
                message.content[RECORD] = ConfigRecord({**record, UNION: pack({name: self.rows})})
        return super().send_and_receive(asked, timeout=timeout)


def test_other_rows_for_one_client_give_no_sum(tmp_path: Path) -> None:
    """Its numbers at a row that nobody else is asked for would stand alone; the server adds up what then is noise."""
    honest = SecureLoopback(tmp_path / "honest", *ON, "num_rounds=1")
    honest.serve()
    liar = OtherUnion(tmp_path / "liar", *ON, "num_rounds=1", "max_failed_rounds=1")
    liar.rows = unions(honest)[0] + 1
    liar.rows[-1] = min(liar.rows[-1], 800)
    with contextlib.suppress(FedMoEError):  # noise is refused where its weight is below 0
        liar.serve()
    said = [json.loads((run / "metrics.jsonl").read_text()) for run in (honest.run_dir, liar.run_dir)]
    assert "loss" in said[0]["train"]
    assert said[1]["failure"] or abs(said[1]["train"]["loss"] - said[0]["train"]["loss"]) > 1


@pytest.mark.parametrize("rows", [np.array([3, 2]), np.array([-1]), np.array([801]), np.array([[1]]), np.array([1.0])])
def test_rows_that_are_none_are_refused(tmp_path: Path, rows: NDArray[Any]) -> None:
    grid = OtherUnion(tmp_path / "deployment", *ON, "num_rounds=1", "evaluate_every=0")
    grid.rows = rows
    run = grid.serve()
    errors = [reply for reply in grid.received if reply.has_error()]
    assert len(errors) == 1  # client 2's own log says which; the others are summed without it
    assert ROWS not in str(errors[0].error.reason)
    assert (run / "result.json").exists()
