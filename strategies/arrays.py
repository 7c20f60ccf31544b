"""Arrays whose values are at hand: decoded once, or a table of which only some rows came.

Flower's ``Array`` parses its bytes at every call of ``numpy`` and always holds them. Those of replies make bytes, and a
table its other rows, when somebody asks; the model's, which travel in every round, keep both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

ROWS = "/rows"  # NAME/rows are the ids of the rows that are sent of the table NAME; the client's side knows it too


class _OwnKind(Array):
    """An array of a class that Flower does not know. Where Flower writes it out by parts, it is a plain ``Array``."""

    def deflate(self) -> bytes:
        """Return what names the array's parts, and its class, when it is sent to real clients."""
        plain = Array(dtype=self.dtype, shape=self.shape, stype=self.stype, data=self.data)
        deflated: bytes = plain.deflate()
        return deflated


class _OnDemand(_OwnKind):
    """An array without bytes of its own. Not to be made itself."""

    def __init__(self, like: Array, **own: Any) -> None:
        # Array's own constructor sorts out the many ways to call it, which would take longer than the decoding.
        self.__dict__.update(dtype=like.dtype, shape=like.shape, stype="numpy.ndarray", **own)

    @property
    def data(self) -> bytes:  # type: ignore[override]  # who writes to an array's bytes makes an array
        """The values as the bytes that travel."""
        encoded: bytes = Array(self.numpy()).data
        return encoded


class _Valued(_OwnKind):
    """An array whose values are decoded; ``numpy`` copies them, ``values`` is to be read only."""

    values: np.ndarray

    def numpy(self) -> np.ndarray:
        """Return the values, as an array of one's own to write into."""
        return self.values.copy()


class Decoded(_Valued, _OnDemand):
    """An array that holds its values and makes its bytes when somebody asks."""

    def __init__(self, like: Array, values: np.ndarray) -> None:
        super().__init__(like, values=values)


class TableRows(_OnDemand):
    """The rows ``rows [R, ...]`` at ``ids`` int64 ``[R]`` (ascending, distinct) of a table, the others ``server``'s."""

    ids: np.ndarray
    rows: np.ndarray
    server: Array

    def __init__(self, server: Array, ids: np.ndarray, rows: np.ndarray) -> None:
        super().__init__(server, ids=ids, rows=rows, server=server)

    def numpy(self) -> np.ndarray:
        """Return the whole table, made anew at each call: who keeps it keeps the memory of a table."""
        table = self.server.numpy()
        table[self.ids] = self.rows
        return table


class Kept(_Valued):
    """An array that holds its bytes and its values. Another process gets it as a plain one: the bytes say it all."""

    def __init__(self, encoded: Array, values: np.ndarray) -> None:
        self.__dict__.update(dtype=encoded.dtype, shape=encoded.shape, stype=encoded.stype, data=encoded.data)
        self.__dict__["values"] = values

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def values_of(array: Array, like: Array) -> np.ndarray:
    """Return the values of ``array``, to be read only; quickly, where its header is byte for byte that of ``like``."""
    if isinstance(array, _Valued):
        return array.values
    header = len(like.data) - np.dtype(like.dtype).itemsize * math.prod(like.shape)
    same = array.stype == like.stype and len(array.data) == len(like.data)
    if same and array.data[:header] == like.data[:header]:
        # Parsing the header takes most of the time of a small array; the order of the values is of no matter here.
        return np.frombuffer(array.data, like.dtype, offset=header).reshape(like.shape)
    return array.numpy()


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Return a record of these very arrays: made from a dict by Flower's constructor it would hold plain copies."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record
