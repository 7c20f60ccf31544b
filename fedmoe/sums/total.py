"""Sums of clients' integers: one client's is a sum of one. What a server sees of them is two vectors.

The first counts the clients that touched each row of a table (their items and negatives of the round). The second holds
the weight, the metrics and the arrays, of a table the rows of the first vector's union alone; the whole table where the
union is nearly all of it. Vectors of clients are added entry by entry, modulo ``2**ring_bits``.

A sum travels as named arrays: ``numbers``, the digits of weight and metrics; ``whole``, the integers of the arrays that
travel whole, one after the other; and of a table of which rows travel its name, ``NAME/rows`` and ``NAME/clients``, how
many clients touched each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from fedmoe.sums.quantise import FRACTION, digits_of, from_digits
from fedmoe.sums.terms import Ring, Terms
from fedmoe.wire import ROWS, NamedArrays

COUNTS = "/clients"
NUMBERS, WHOLE = "numbers", "whole"
NAMES = "sum"  # the config record that goes along, with the names of the metrics
NEARLY_ALL = 0.9  # share of a table's rows in the union from which on the whole table is added up

Shapes = Mapping[str, tuple[int, ...]]
Union = Mapping[str, NDArray[np.int64]]  # of each table of which rows travel: those that are added up


@dataclass(frozen=True)
class Decoded:
    """What sums say. updates: name -> weighted mean of the clients' updates, float64; metrics: their weighted means."""

    weight: int
    updates: Mapping[str, NDArray[np.float64]]
    metrics: Mapping[str, float]


class ExactSum:
    """The sum of any number of clients, up to that of the terms.

    shapes: name -> shape of the arrays that are added up, in their order; none for metrics alone.
    """

    def __init__(self, terms: Terms, shapes: Shapes) -> None:
        self.terms = terms
        self.shapes = dict(shapes)
        self.clients = 0
        self.metrics: tuple[str, ...] | None = None
        self.touched: dict[str, NDArray[np.int64]] = {}  # table -> clients that touched each row
        self._numbers: Ring = np.zeros((0, digits_of(terms)), terms.dtype)
        self._whole: Ring = np.zeros(0, terms.dtype)
        self._tables: dict[str, Ring] = {}

    def add(self, arrays: NamedArrays, metrics: Sequence[str], clients: int = 1) -> None:
        """Add a sum as it travels, of so many clients; nothing is added if it is refused.

        metrics: the names of its metrics, in their order, without the weight.
        Raises FedMoEError, naming what is wrong with it.
        """
        self._check(arrays, metrics, clients)
        wrapped = self.terms.wrapped
        if self.metrics is None:
            self.metrics = tuple(metrics)
            self._tables = {name: np.zeros(self.shapes[name], self.terms.dtype) for name in tables_of(arrays)}
            self.touched = {name: np.zeros(len(table), np.int64) for name, table in self._tables.items()}
            self._numbers = np.zeros((1 + len(metrics), digits_of(self.terms)), self.terms.dtype)
            self._whole = np.zeros(whole_size(self.shapes, self._tables), self.terms.dtype)
        self._numbers += wrapped(arrays[NUMBERS])
        self._whole += wrapped(arrays[WHOLE])
        for name, table in self._tables.items():
            rows = arrays[name + ROWS]
            table[rows] += wrapped(arrays[name])
            self.touched[name][rows] += arrays.get(name + COUNTS, 1)
        self.clients += clients

    def travelling(self) -> NamedArrays:
        """Return the sum as it travels: of a table the rows that a client touched."""
        arrays: NamedArrays = {NUMBERS: self._numbers, WHOLE: self._whole}
        for name, table in self._tables.items():
            rows = np.flatnonzero(self.touched[name])
            arrays |= {name: table[rows], name + ROWS: rows, name + COUNTS: self.touched[name][rows]}
        return arrays

    def vector(self, union: Union) -> Ring:
        """Return the one vector that is added up."""
        rows = [table[union[name]].ravel() for name, table in self._tables.items()]
        return self.terms.in_ring(np.concatenate([self._numbers.ravel(), self._whole, *rows]))

    def union(self) -> dict[str, NDArray[np.int64]]:
        """Return the rows that any client touched; all rows of a table of which that is nearly all."""
        found = {name: np.flatnonzero(counts) for name, counts in self.touched.items()}
        return {
            name: rows if len(rows) < NEARLY_ALL * len(self.touched[name]) else np.arange(len(self.touched[name]))
            for name, rows in found.items()
        }

    def _check(self, arrays: NamedArrays, metrics: Sequence[str], clients: int) -> None:
        if self.clients + clients > self.terms.clients:
            raise FedMoEError(f"more than {self.terms.clients} clients were added up, which may wrap around")
        if self.metrics is not None and tuple(metrics) != self.metrics:
            raise FedMoEError(f"its metrics are {list(metrics)}, the others' {list(self.metrics)}")
        if arrays.get(NUMBERS, np.zeros(0)).shape != (1 + len(metrics), digits_of(self.terms)):
            raise FedMoEError("its weight and metrics are not in the digits that were asked for")
        tables = tables_of(arrays)
        known = {name + end for name in tables if name in self.shapes for end in ("", ROWS, COUNTS)}
        if odd := sorted(arrays.keys() - known - {NUMBERS, WHOLE}):
            raise FedMoEError(f"parameter '{odd[0]}' is not aggregated in this round")
        if self.clients and tables != list(self._tables):
            raise FedMoEError("it sends a table whole of which others send rows, or the other way round")
        shapes = {name: (_checked_rows(name, arrays[name + ROWS], self.shapes[name]),) for name in tables}
        wanted = {WHOLE: (whole_size(self.shapes, tables),)}
        for name, shape in (wanted | {name: (*shapes[name], *self.shapes[name][1:]) for name in tables}).items():
            found = arrays.get(name)
            if found is None or found.shape != shape or found.dtype.kind not in "iu":
                what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise FedMoEError(f"parameter '{name}' must be integers {list(shape)}, is {what}")


def tables_of(arrays: Iterable[str]) -> list[str]:
    """Return the tables of which rows travel, by the names of what travels."""
    return [name.removesuffix(ROWS) for name in arrays if name.endswith(ROWS)]


def whole_size(shapes: Shapes, tables: Collection[str]) -> int:
    """Return how many numbers the arrays have that travel whole."""
    return sum(prod(shape) for name, shape in shapes.items() if name not in tables)


def _checked_rows(name: str, rows: NDArray[Any], shape: tuple[int, ...]) -> int:
    """Return how many rows of a table came. FedMoEError: they are none of its, or come twice."""
    if rows.dtype != np.int64 or rows.ndim != 1 or not shape:
        raise FedMoEError(f"parameter '{name}{ROWS}' must be a list of int64")
    if len(rows) and not (rows[0] >= 0 and rows[-1] < shape[0] and (np.diff(rows) > 0).all()):
        raise FedMoEError(f"parameter '{name}{ROWS}' must be ascending, distinct and within 0..{shape[0] - 1}")
    return len(rows)


def touched_vector(rows: NDArray[np.int64], size: int, terms: Terms) -> Ring:
    """Return one client's part in the count of clients that touched each row, ``[size]``: 1 at its rows."""
    indicator = np.zeros(size, terms.dtype)
    indicator[rows] = 1
    return indicator


def entries(shapes: Shapes, union: Union, metrics: int, terms: Terms) -> int:
    """Return how many entries the one vector has; metrics: how many there are beside the weight."""
    rows = sum(len(ids) * prod(shapes[name][1:]) for name, ids in union.items())
    return (1 + metrics) * digits_of(terms) + whole_size(shapes, union) + rows


def decoded(vector: Ring, shapes: Shapes, union: Union, metrics: Sequence[str], terms: Terms) -> Decoded:
    """Return what the sum of all clients' vectors says. FedMoEError: it is of another length, or of no weight."""
    if len(vector) != (wanted := entries(shapes, union, len(metrics), terms)):
        raise FedMoEError(f"the sum has {len(vector)} entries, not {wanted}: clients and server differ in their model")
    sums, start = terms.signed(vector), (1 + len(metrics)) * digits_of(terms)
    weight, *numbers = from_digits(sums[:start].reshape(-1, digits_of(terms)), terms)
    if weight <= 0:
        raise FedMoEError("the sum of the weights is not above 0")
    examples, updates = weight >> FRACTION, {name: np.zeros(shape) for name, shape in shapes.items()}
    means = sums[start:] * (terms.unit / examples)
    place = 0
    for name in [*(name for name in shapes if name not in union), *union]:
        rows = union.get(name, ...)
        size = updates[name][rows].size
        updates[name][rows] = means[place : place + size].reshape(updates[name][rows].shape)
        place += size
    return Decoded(examples, updates, {name: each / weight for name, each in zip(metrics, numbers, strict=True)})
