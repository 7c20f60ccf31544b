"""Sums of clients' integers: one client's is a sum of one. What a server sees of them is two vectors.

The first counts the clients that touched each row of a table (their items and negatives of the round). The second holds
the weight, the metrics and the arrays, of a table the rows of the first vector's union alone; the whole table where the
union is nearly all of it. Vectors of clients are added entry by entry, modulo ``2**ring_bits``.

A sum travels as named arrays: the arrays' integers; ``NAME/rows``, where rows of a table travel, and ``NAME/clients``,
how many clients touched each; ``numbers``, the digits of weight and metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
NUMBERS = "numbers"
NAMES = "sum"  # the config record that goes along, with the names of the metrics
NEARLY_ALL = 0.9  # share of a table's rows in the union from which on the whole table is added up

Shapes = Mapping[str, tuple[int, ...]]
Union = Mapping[str, NDArray[np.int64]]


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
        self._arrays = {name: np.zeros(shape, terms.dtype) for name, shape in self.shapes.items()}

    def add(self, arrays: NamedArrays, metrics: Sequence[str], clients: int = 1) -> None:
        """Add a sum as it travels, of so many clients; nothing is added if it is refused.

        metrics: the names of its metrics, in their order, without the weight.
        Raises FedMoEError, naming what is wrong with it.
        """
        self._check(arrays, metrics, clients)
        if self.metrics is None:
            self.metrics = tuple(metrics)
            self._numbers = np.zeros((1 + len(metrics), digits_of(self.terms)), self.terms.dtype)
        self._numbers += self.terms.wrapped(arrays[NUMBERS])
        for name, total in self._arrays.items():
            added = self.terms.wrapped(arrays[name])
            if name + ROWS in arrays:
                rows = arrays[name + ROWS]
                total[rows] += added
                counts = self.touched.setdefault(name, np.zeros(len(total), np.int64))
                counts[rows] += arrays.get(name + COUNTS, 1)
            else:
                total += added
        self.clients += clients

    def travelling(self) -> NamedArrays:
        """Return the sum as it travels: of a table the rows that a client touched."""
        arrays: NamedArrays = {}
        for name, total in self._arrays.items():
            arrays[name] = total
            if name in self.touched:
                rows = np.flatnonzero(self.touched[name])
                arrays |= {name: total[rows], name + ROWS: rows, name + COUNTS: self.touched[name][rows]}
        return arrays | {NUMBERS: self._numbers}

    def vector(self, union: Union) -> Ring:
        """Return the one vector that is added up; union: the rows of each table that is not added up whole."""
        parts = [self._numbers, *(total[union.get(name, ...)] for name, total in self._arrays.items())]
        return self.terms.in_ring(np.concatenate([part.ravel() for part in parts]))

    def union(self) -> dict[str, NDArray[np.int64]]:
        """Return the rows that any client touched, of each table of which they are clearly fewer than all."""
        found = {name: np.flatnonzero(counts) for name, counts in self.touched.items()}
        return {name: rows for name, rows in found.items() if len(rows) < NEARLY_ALL * self.shapes[name][0]}

    def _check(self, arrays: NamedArrays, metrics: Sequence[str], clients: int) -> None:
        if self.clients + clients > self.terms.clients:
            raise FedMoEError(f"more than {self.terms.clients} clients were added up, which may wrap around")
        if self.metrics is not None and tuple(metrics) != self.metrics:
            raise FedMoEError(f"its metrics are {list(metrics)}, the others' {list(self.metrics)}")
        if arrays.get(NUMBERS, np.zeros(0)).shape != (1 + len(metrics), digits_of(self.terms)):
            raise FedMoEError("its weight and metrics are not in the digits that were asked for")
        known = {name + end for name in self.shapes for end in ("", ROWS, COUNTS)} | {NUMBERS}
        if odd := sorted(arrays.keys() - known):
            raise FedMoEError(f"parameter '{odd[0]}' is not aggregated in this round")
        for name, shape in self.shapes.items():
            found, rows = arrays.get(name), arrays.get(name + ROWS)
            if self.clients and (rows is not None) != (name in self.touched):
                raise FedMoEError(f"parameter '{name}' comes whole of some clients and in rows of others")
            if rows is not None:
                shape = (_checked_rows(name, rows, shape), *shape[1:])
            if found is None or found.shape != shape or found.dtype.kind not in "iu":
                what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise FedMoEError(f"parameter '{name}' must be integers {list(shape)}, is {what}")


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
    rows = {name: (len(union[name]), *shape[1:]) if name in union else shape for name, shape in shapes.items()}
    return (1 + metrics) * digits_of(terms) + sum(prod(shape) for shape in rows.values())


def decoded(vector: Ring, shapes: Shapes, union: Union, metrics: Sequence[str], terms: Terms) -> Decoded:
    """Return what the sum of all clients' vectors says. FedMoEError: it is of another length, or of no weight."""
    if len(vector) != (wanted := entries(shapes, union, len(metrics), terms)):
        raise FedMoEError(f"the sum has {len(vector)} entries, not {wanted}: clients and server differ in their model")
    sums, start = terms.signed(vector), (1 + len(metrics)) * digits_of(terms)
    weight, *numbers = from_digits(sums[:start].reshape(-1, digits_of(terms)), terms)
    if weight <= 0:
        raise FedMoEError("the sum of the weights is not above 0")
    examples, updates = weight >> FRACTION, {}
    for name, shape in shapes.items():
        mean, rows = np.zeros(shape), union.get(name, ...)
        size = mean[rows].size
        mean[rows] = (sums[start : start + size] * (terms.unit / examples)).reshape(mean[rows].shape)
        updates[name], start = mean, start + size
    return Decoded(examples, updates, {name: each / weight for name, each in zip(metrics, numbers, strict=True)})
