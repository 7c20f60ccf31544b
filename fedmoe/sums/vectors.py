"""A client's answer as the one vector that a secure sum adds up, and the sum as an answer again.

The vector is that of ``ExactSum`` with every table whole, and after it, for each table, 1 at the rows that the client
touched. All of it is added up in the same ring, so what comes out is what adding the answers themselves gives.

Of large tables of which few rows are touched, those ones are added up first, in a ring of their own, and then what the
vector holds at the rows of their union. Two sums give what the one gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from fedmoe.sums.quantise import digits_of
from fedmoe.sums.terms import Ring, Terms
from fedmoe.sums.total import (
    COUNTS,
    NUMBERS,
    WHOLE,
    ExactSum,
    Shapes,
    Union,
    entries,
    tables_of,
    touched_vector,
    whole_size,
)
from fedmoe.wire import ROWS, NamedArrays


@dataclass(frozen=True)
class Layout:
    """What the entries of a vector are: the same for all clients of a sum.

    Attributes:
        shapes: name -> shape of the arrays, in their order, tables whole.
        tables: those of them whose touched rows are counted.
        metrics: names of the metrics, in their order, without the weight.
    """

    shapes: Shapes
    tables: tuple[str, ...]
    metrics: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON can hold it."""
        shapes = [[name, *shape] for name, shape in self.shapes.items()]
        return {"shapes": shapes, "tables": list(self.tables), "metrics": list(self.metrics)}

    @classmethod
    def of_json(cls, found: Any) -> Layout:
        """Return the layout that JSON holds. FedMoEError: it holds none, or tables that are no arrays of it."""
        try:
            shapes = {str(name): tuple(map(int, shape)) for name, *shape in found["shapes"]}
            layout = cls(shapes, tuple(map(str, found["tables"])), tuple(map(str, found["metrics"])))
        except (KeyError, TypeError, ValueError) as error:
            raise FedMoEError("the masked vector does not say what it holds") from error
        if not set(layout.tables) <= set(shapes):
            raise FedMoEError("the masked vector is of tables that are not among its arrays")
        return layout


def layout_of(arrays: NamedArrays, metrics: Sequence[str], shapes: Shapes) -> Layout:
    """Return the layout of a client's answer; shapes: of the arrays that it adds up, in their order, tables whole."""
    return Layout(shapes, tuple(tables_of(arrays)), tuple(metrics))


def to_vector(arrays: NamedArrays, layout: Layout, terms: Terms) -> Ring:
    """Return the vector of one client's answer, below ``2**terms.ring_bits``. Raises FedMoEError if it does not fit."""
    return np.concatenate([to_values(arrays, layout, terms, _every_row(layout)), to_counts(arrays, layout, terms)])


def to_counts(arrays: NamedArrays, layout: Layout, terms: Terms) -> Ring:
    """Return 1 at the rows that one client touched, of all tables; the first of two sums."""
    each = [touched_vector(arrays[name + ROWS], layout.shapes[name][0], terms) for name in layout.tables]
    return np.concatenate([np.zeros(0, terms.dtype), *each])


def to_values(arrays: NamedArrays, layout: Layout, terms: Terms, union: Union) -> Ring:
    """Return the vector of one client's answer without the counts, of tables the union alone; the second of two sums.

    Raises FedMoEError if the answer does not fit.
    """
    total = ExactSum(terms, layout.shapes)
    total.add(arrays, layout.metrics)
    return total.vector(union)


def from_vector(vector: Ring, layout: Layout, terms: Terms) -> NamedArrays:
    """Return the sum of vectors as a sum that travels, see ``total``. Raises FedMoEError for another length."""
    values = len(vector) - sum(layout.shapes[name][0] for name in layout.tables)
    return from_sums(vector[: max(values, 0)], vector[max(values, 0) :], _every_row(layout), layout, terms)


def from_sums(values: Ring, counts: Ring, union: Union, layout: Layout, terms: Terms) -> NamedArrays:
    """Return what the two sums give as a sum that travels. Raises FedMoEError for sums of another length."""
    shapes, tables = layout.shapes, layout.tables
    wanted = entries(shapes, union, len(layout.metrics), terms), sum(shapes[name][0] for name in tables)
    if (len(values), len(counts)) != wanted:
        raise FedMoEError(
            f"the sum has {len(values)} and {len(counts)} entries, not {wanted[0]} and {wanted[1]}: clients and server "
            "differ in their model"
        )
    numbers, whole, *rows = _taken(
        values,
        (1 + len(layout.metrics), digits_of(terms)),
        (whole_size(shapes, tables),),
        *((len(union[name]), *shapes[name][1:]) for name in tables),
    )
    found = {NUMBERS: numbers, WHOLE: whole}
    for name, clients, of_union in zip(tables, rows_counted(counts, layout), rows, strict=True):
        touched = np.flatnonzero(clients)
        found |= {name: of_union[np.searchsorted(union[name], touched)], name + ROWS: touched}
        found[name + COUNTS] = clients[touched]
    return found


def checked_union(union: NamedArrays, layout: Layout) -> Union:
    """Return the rows of a union as they came. FedMoEError: they are not rows of the layout's tables."""
    for name in layout.tables:
        rows = union.get(name, np.zeros(0))
        fits = rows.dtype == np.int64 and rows.ndim == 1 and (np.diff(rows, prepend=-1) > 0).all()
        if not fits or (len(rows) and rows[-1] >= layout.shapes[name][0]):
            raise FedMoEError(
                f"the rows of '{name}' that are to be added up must be ascending, distinct and in the table"
            )
    return {name: union[name] for name in layout.tables}


def rows_counted(counts: Ring, layout: Layout) -> list[NDArray[np.int64]]:
    """Return for each table how many clients touched each row."""
    return _taken(counts.astype(np.int64), *((layout.shapes[name][0],) for name in layout.tables))


def _every_row(layout: Layout) -> Union:
    return {name: np.arange(layout.shapes[name][0]) for name in layout.tables}


def _taken(vector: NDArray[Any], *shapes: tuple[int, ...]) -> list[NDArray[Any]]:
    """Return the arrays that lie in a vector one after the other."""
    ends = np.cumsum([prod(shape) for shape in shapes], dtype=np.int64)
    return (
        [part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)] if shapes else []
    )
