"""Arrays of our own kinds: what they hold, and that Flower's wire sees plain arrays."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from strategies.layers.replies import TableRows, Valued, record_of, values_of

VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)
PLAIN = Array(VALUES)
SERVER = Array(np.array([[0, 1], [9, 9], [9, 9]], np.float32))
KINDS = [Valued(VALUES), TableRows(SERVER, np.array([1, 2]), VALUES[1:])]
each_kind = pytest.mark.parametrize("array", KINDS, ids=lambda array: type(array).__name__)


@each_kind
def test_values(array: Array) -> None:
    np.testing.assert_array_equal(array.numpy(), VALUES)
    np.testing.assert_array_equal(values_of(array), VALUES)
    assert (array.dtype, array.shape, array.stype) == (PLAIN.dtype, PLAIN.shape, PLAIN.stype)
    assert array.data == PLAIN.data
    assert array.numpy().flags.writeable and array.numpy() is not VALUES


@each_kind
def test_another_process_gets_the_same(array: Array) -> None:
    found = pickle.loads(pickle.dumps(array))
    assert type(found) is type(array) and found.data == PLAIN.data


@each_kind
def test_real_clients_get_a_plain_array(array: Array) -> None:
    assert array.deflate() == PLAIN.deflate()
    sent, plain = (RecordDict({"arrays": record}) for record in (record_of({"w": array}), ArrayRecord({"w": PLAIN})))
    assert sent.object_id == plain.object_id


def test_a_scalar_keeps_its_shape() -> None:
    assert Valued(np.array(2.5)).numpy().shape == () == Array(np.array(2.5)).shape


def test_values_of_a_plain_array() -> None:
    np.testing.assert_array_equal(values_of(PLAIN), VALUES)
