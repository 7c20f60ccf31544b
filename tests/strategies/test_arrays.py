"""Arrays of our own kinds: what they hold, and that Flower's wire sees plain arrays."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from strategies.arrays import Decoded, Kept, TableRows, record_of

VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)
PLAIN = Array(VALUES)
SERVER = Array(np.array([[0, 1], [9, 9], [9, 9]], np.float32))
KINDS = [Decoded(PLAIN, VALUES), Kept(PLAIN, VALUES), TableRows(SERVER, np.array([1, 2]), VALUES[1:])]


@pytest.mark.parametrize("array", KINDS, ids=lambda array: type(array).__name__)
def test_values(array: Array) -> None:
    np.testing.assert_array_equal(array.numpy(), VALUES)
    assert array.data == PLAIN.data


@pytest.mark.parametrize("array", KINDS, ids=lambda array: type(array).__name__)
def test_real_clients_get_a_plain_array(array: Array) -> None:
    assert array.deflate() == PLAIN.deflate()
    sent, plain = (RecordDict({"arrays": record}) for record in (record_of({"w": array}), ArrayRecord({"w": PLAIN})))
    assert sent.object_id == plain.object_id
