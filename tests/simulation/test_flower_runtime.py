"""Node ids, and copies and bytes of records."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmoe.errors import FedMoEError
from fedmoe.wire import is_packed, packed_bytes, packed_in, size_of, to_record
from simulation.flower_runtime import ClientIds, copy_records, records_from_bytes, records_to_bytes, unpacked_record


def test_a_million_ids_need_no_table() -> None:
    ids = ClientIds(1_000_000)
    assert (len(ids), ids[2], ids[1_000_001], next(iter(ids))) == (1_000_000, 0, 999_999, 2)
    assert list(ClientIds(3).values()) == [0, 1, 2] and 2 in ClientIds(3).values()
    for nobody in (0, 1, 1_000_002):
        with pytest.raises(KeyError):
            ids[nobody]
        with pytest.raises(FedMoEError, match=f"node {nobody}: the nodes are 2 to 1000001"):
            ids.client_of(nobody)
    assert ids.clients == range(1_000_000)
    assert [ids[ids.node_of(client)] for client in (0, 7, 999_999)] == [0, 7, 999_999]


def records() -> RecordDict:
    return RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.arange(3.0)), "e": Array(np.zeros((0, 2), np.float16))}),
            "config": ConfigRecord({"names": ["a", "b"], "flag": True, "bytes": b"\x00", "large": 2**63}),
            "metrics": MetricRecord({"loss": 0.5, "counts": [1, 2]}),
        }
    )


def test_a_copy_shares_nothing_that_can_be_changed() -> None:
    original, copy = records(), copy_records(records())
    copy = copy_records(original)
    assert copy == original and list(copy) == list(original)
    assert copy["arrays"]["w"].data is original["arrays"]["w"].data, "the bytes themselves are not copied"
    assert original["arrays"].object_id == copy["arrays"].object_id
    copy["arrays"]["w"].data = b""
    copy["arrays"]["new"] = Array(np.zeros(1))
    copy["config"]["names"].append("c")
    copy["metrics"]["counts"][0] = 7
    del copy["metrics"]["loss"]
    assert original == records()


def test_records_survive_as_bytes() -> None:
    back = records_from_bytes(records_to_bytes(records()))
    assert back == records() and [list(back[name]) for name in back] == [list(records()[name]) for name in back]


def test_arrays_that_nothing_packed_are_those_that_something_has() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([7])}
    lazy, packed = unpacked_record(arrays), to_record(arrays)
    assert is_packed(lazy) and size_of(lazy) == size_of(packed) == packed.count_bytes()
    assert packed_in(lazy) is arrays
    copy = pickle.loads(pickle.dumps(copy_records(RecordDict({"arrays": lazy}))))["arrays"]
    np.testing.assert_array_equal(packed_in(copy)["a"], arrays["a"])
    assert "data" not in vars(next(iter(lazy.values()))), "so far nobody has asked for bytes"
    assert packed_bytes(lazy) == packed_in(packed) == packed_bytes(packed)
    assert records_from_bytes(records_to_bytes(RecordDict({"arrays": lazy})))["arrays"] == packed
