"""A client's answer as the one vector that a secure sum adds up, and the sum as an answer again.

The vector is that of ``ExactSum`` with every table whole, and after it, for each table, 1 at the rows that the client
touched. All of it is added up in the same ring, so what comes out is what adding the answers themselves gives.
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


def layout_of(arrays: NamedArrays, metrics: Sequence[str], shapes: Shapes) -> Layout:
    """Return the layout of a client's answer; shapes: of the arrays that it adds up, in their order, tables whole."""
    return Layout(shapes, tuple(tables_of(arrays)), tuple(metrics))


def to_vector(arrays: NamedArrays, layout: Layout, terms: Terms) -> Ring:
    """Return the vector of one client's answer, below ``2**terms.ring_bits``. Raises FedMoEError if it does not fit."""
    total = ExactSum(terms, layout.shapes)
    total.add(arrays, layout.metrics)
    counts = [touched_vector(arrays[name + ROWS], layout.shapes[name][0], terms) for name in layout.tables]
    every = {name: np.arange(layout.shapes[name][0]) for name in layout.tables}
    return np.concatenate([total.vector(every), *counts])


def from_vector(vector: Ring, layout: Layout, terms: Terms) -> NamedArrays:
    """Return the sum of vectors as a sum that travels, see ``total``. Raises FedMoEError for another length."""
    shapes, start, found = layout.shapes, 0, {}
    wanted = entries(shapes, {}, len(layout.metrics), terms) + sum(shapes[name][0] for name in layout.tables)
    if len(vector) != wanted:
        raise FedMoEError(f"the sum has {len(vector)} entries, not {wanted}: clients and server differ in their model")

    def taken(*shape: int) -> NDArray[Any]:
        nonlocal start
        start += prod(shape)
        return vector[start - prod(shape) : start].reshape(shape)

    found = {NUMBERS: taken(1 + len(layout.metrics), digits_of(terms))}
    found[WHOLE] = taken(whole_size(shapes, layout.tables))
    found |= {name: taken(*shapes[name]) for name in layout.tables}
    for name in layout.tables:
        counts = taken(shapes[name][0]).astype(np.int64)
        rows = np.flatnonzero(counts)
        found |= {name: found[name][rows], name + ROWS: rows, name + COUNTS: counts[rows]}
    return found
