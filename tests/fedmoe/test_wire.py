"""Packed arrays: the same arrays come out, and whatever else comes in is refused with its fault."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from fedmoe.errors import FedMoEError
from fedmoe.wire import VERSION, is_packed, pack, packed_bytes, packed_size, to_record, unpack

BEGIN = struct.Struct("<6sHI")
DTYPES = ["?", "i1", "u1", "<i2", ">i4", "<i8", "<f2", "<f4", ">f4", "<f8", "<c8"]
ARRAYS = st.dictionaries(
    st.text(max_size=12),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: numpy_strategies.arrays(dtype, numpy_strategies.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    max_size=5,
)
SOME = {
    "items": np.arange(6, dtype=np.float32).reshape(3, 2),
    "gate": np.array(0.5, np.float32),
    "items/rows": np.arange(3),
}


def packed_as(header: Any, values: bytes = b"", version: int = VERSION, magic: bytes = b"FedMoE") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = BEGIN.pack(magic, version, len(encoded)) + encoded
    return start + bytes(-len(start) % 16) + values


@given(ARRAYS)
@hypothesis_settings(deadline=None)
def test_what_is_packed_comes_out(arrays: dict[str, np.ndarray]) -> None:
    data = pack(arrays)
    found = unpack(data)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("<"))
        assert (found[name].shape, found[name].dtype.str) == (array.shape, native.dtype.str)
        assert found[name].tobytes() == native.tobytes()
    layout = [(name, array.dtype, array.shape) for name, array in arrays.items()]
    assert to_record(arrays).count_bytes() == packed_size(layout)
    assert pack(found) == data


def test_nothing_is_copied_and_values_are_aligned() -> None:
    data = bytearray(pack(SOME))
    arrays = unpack(data)
    first = np.frombuffer(data, np.uint8).ctypes.data
    assert all((array.ctypes.data - first) % 16 == 0 for array in arrays.values())
    arrays["items"][0, 0] = 7
    assert unpack(data)["items"][0, 0] == 7
    with pytest.raises(ValueError, match="read-only"):
        unpack(bytes(data))["items"][0, 0] = 8


def test_rows_of_another_memory_order_come_out_the_same() -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert unpack(pack({"w": table.T}))["w"].tolist() == table.T.tolist()
    assert unpack(pack({"w": table[:, ::2]}))["w"].tolist() == table[:, ::2].tolist()


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.zeros(2, "M8[s]"), np.zeros(1, "i4,f4")])
def test_what_is_no_number_is_not_packed(array: np.ndarray) -> None:
    with pytest.raises(FedMoEError, match="array 'w' has dtype .*: numbers alone"):
        pack({"w": array})


@pytest.mark.parametrize("length", range(0, len(pack(SOME)), 7))
def test_truncated_bytes_are_refused(length: int) -> None:
    with pytest.raises(FedMoEError, match="the packed arrays are damaged"):
        unpack(pack(SOME)[:length])


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "only 0 bytes came"),
        (b"\x93NUMPY and something more", "do not begin as packed arrays do"),
        (packed_as([], version=2), r"packed in version 2 of the format, here it is 1: install the same version"),
        (BEGIN.pack(b"FedMoE", VERSION, 2**32 - 1) + b"[]", "the header has 4294967295 bytes, and 14 came"),
        (packed_as(b"[" * 100_000), "no JSON"),
        (packed_as(b'["w", \xff]'), "no JSON"),
        (packed_as({"w": 1}), "no list"),
        (packed_as([["w", "<f4"]]), "a name, a dtype and a shape"),
        (packed_as([[1, "<f4", []]]), "a name, a dtype and a shape"),
        (packed_as([["w", "|O", [1]]]), r"array 'w' has the unknown dtype '\|O'"),
        (packed_as([["w", "<f4,<f4", [1]]]), "array 'w' has the unknown dtype"),
        (packed_as([["w", "<f4", [-1]]]), "array 'w' has no shape"),
        (packed_as([["w", "<f4", [True]]]), "array 'w' has no shape"),
        (packed_as([["w", "<f4", [1.0]]]), "array 'w' has no shape"),
        (packed_as([["w", "<f4", [1] * 33]], bytes(4)), "array 'w' has no shape"),
        (packed_as([["w", "<f4", [2**40, 2**40]]]), r"array 'w' \(1099511627776, 1099511627776\) ends after"),
        (packed_as([["w", "<f4", [0, 2**62, 2**62]]]), "array 'w' has the impossible shape"),
        (packed_as([["w", "<f4", [1]], ["w", "<f4", [1]]], bytes(20)), "array 'w' comes twice"),
        (packed_as([["w", "<f4", [1]]], bytes(8)), "4 bytes follow the last array"),
    ],
)
def test_hostile_bytes_are_refused_with_their_fault(data: bytes, fault: str) -> None:
    with pytest.raises(FedMoEError, match=fault):
        unpack(data)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(packed_as))
@hypothesis_settings(deadline=None)
def test_no_bytes_crash(data: bytes) -> None:
    try:
        unpack(data)
    except FedMoEError as error:
        assert "\n" not in str(error)


@given(st.integers(0, len(pack(SOME)) - 1), st.binary(min_size=1, max_size=3))
@hypothesis_settings(deadline=None, max_examples=300)
def test_no_changed_bytes_crash(place: int, change: bytes) -> None:
    data = bytearray(pack(SOME))
    data[place : place + len(change)] = change
    try:
        found = unpack(data)
    except FedMoEError:
        return
    assert sum(array.nbytes for array in found.values()) <= len(data)


def test_a_record_holds_one_array_and_survives_flowers_wire() -> None:
    record = to_record(SOME)
    assert len(record) == 1 and is_packed(record)
    content = RecordDict({"arrays": record})
    inflated = RecordDict({"arrays": ArrayRecord(dict(content.array_records["arrays"].items()))})
    assert inflated.object_id == content.object_id
    assert packed_bytes(inflated.array_records["arrays"]) == pack(SOME)


def test_arrays_that_come_one_by_one_are_another_version() -> None:
    for record in (ArrayRecord(), ArrayRecord({"w": Array(np.zeros(2))})):
        assert not is_packed(record)
        with pytest.raises(FedMoEError, match="does not pack its arrays: install the same version of FedMoE"):
            packed_bytes(record)
