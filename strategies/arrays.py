"""Arrays that hold their values: the model's, and those of replies, once they have come off the wire.

Flower's ``Array`` holds bytes and parses them at every call of ``numpy``. These make bytes when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

ROWS = "/rows"  # NAME/rows are the ids of the rows that are sent of the table NAME; the client's side knows it too


class Valued(Array):
    """An array that holds its values, to be read only; ``numpy`` copies them."""

    values: np.ndarray

    def __init__(self, values: np.ndarray) -> None:
        # Array's own constructor sorts out the many ways to call it, which takes longer than all else here.
        self.__dict__.update(dtype=values.dtype.name, shape=values.shape, stype="numpy.ndarray", values=values)

    def numpy(self) -> np.ndarray:
        """Return the values, as an array of one's own to write into."""
        return self.values.copy()

    @property
    def data(self) -> bytes:  # type: ignore[override]  # who writes to an array's bytes makes an array
        """The values as Flower's bytes."""
        encoded: bytes = Array(self.numpy()).data
        return encoded

    def deflate(self) -> bytes:
        """Return what Flower sends ahead of the bytes; it does not know of this class, and gets a plain array's."""
        deflated: bytes = Array(self.numpy()).deflate()
        return deflated


class TableRows(Valued):
    """The rows ``rows [R, ...]`` at ``ids`` int64 ``[R]`` (ascending, distinct) of a table, the others ``server``'s."""

    ids: np.ndarray
    rows: np.ndarray
    server: Array

    def __init__(self, server: Array, ids: np.ndarray, rows: np.ndarray) -> None:
        self.__dict__.update(dtype=server.dtype, shape=server.shape, stype="numpy.ndarray")
        self.__dict__.update(ids=ids, rows=rows, server=server)

    def numpy(self) -> np.ndarray:
        """Return the whole table, made anew at each call: who keeps it keeps the memory of a table."""
        table = self.server.numpy()
        table[self.ids] = self.rows
        return table


def values_of(array: Array) -> np.ndarray:
    """Return the values of an array, to be read only."""
    return array.values if type(array) is Valued else array.numpy()


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Return a record of these very arrays: made from a dict by Flower's constructor it would hold plain copies."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record
