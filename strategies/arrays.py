"""Arrays of replies whose values are at hand: decoded once, or a table of which only some rows came.

Flower's ``Array`` parses its bytes at every call of ``numpy`` and always holds them. These make bytes, and a table its
other rows, when somebody asks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array

ROWS = "/rows"  # NAME/rows are the ids of the rows that are sent of the table NAME; the client's side knows it too


class _OnDemand(Array):
    """An array without bytes of its own. Not to be made itself."""

    def __init__(self, like: Array, **own: Any) -> None:
        # Array's own constructor sorts out the many ways to call it, which would take longer than the decoding.
        self.__dict__.update(dtype=like.dtype, shape=like.shape, stype="numpy.ndarray", **own)

    @property
    def data(self) -> bytes:  # type: ignore[override]  # who writes to an array's bytes makes an array
        """The values as the bytes that travel."""
        encoded: bytes = Array(self.numpy()).data
        return encoded


class Decoded(_OnDemand):
    """An array whose values are decoded; ``numpy`` copies them, ``values`` is to be read only."""

    values: np.ndarray

    def __init__(self, like: Array, values: np.ndarray) -> None:
        super().__init__(like, values=values)

    def numpy(self) -> np.ndarray:
        """Return the values, as an array of one's own to write into."""
        return self.values.copy()


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
