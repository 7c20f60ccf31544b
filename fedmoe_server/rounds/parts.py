"""What the clients of a secure sum put under their masks: all of their answer, or first one part and then the other.

An answer touches few rows of a large item table. Masked, untouched rows travel like all others. So the rows that any
client touched are counted in a first sum, of small numbers, and the answers are added up at those rows in a second one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedmoe.errors import FedMoEError
from fedmoe.secure.phases import PART, ROWS_FIRST, UNION
from fedmoe.secure.primitives import word_type
from fedmoe.secure.wire import question_digest, union_digest
from fedmoe.sums.terms import Ring, Terms
from fedmoe.sums.total import NEARLY_ALL, Shapes, Union, entries
from fedmoe.sums.vectors import Layout, rows_counted
from fedmoe.wire import ROWS, NamedArrays, pack, packed_bytes

LEAST_SPARED = 1_000_000  # bytes of a client's vector: less is not worth a second sum


@dataclass(frozen=True)
class Part:
    """What is asked for in the phase of masked vectors.

    Attributes:
        asked: digest of the question; bits: of an entry.
        words: what the question says beside the delivery; with_model: whether the model and the config go along.
    """

    asked: bytes
    bits: int
    words: Mapping[str, Any] = field(default_factory=dict)
    with_model: bool = True


class Asked:
    """The question of an exchange. kind: ``train`` or ``evaluate``; content: with the packed model and the config."""

    def __init__(self, kind: str, content: RecordDict, terms: Terms) -> None:
        self._kind = kind
        self._question = packed_bytes(content.array_records["arrays"]), dict(content.config_records["config"])
        self._terms = terms

    def whole(self) -> Part:
        """All of the answer."""
        return Part(question_digest(self._kind, *self._question), self._terms.ring_bits)

    def rows(self) -> Part:
        """The rows that the answer touches."""
        asked = question_digest(self._kind + ROWS_FIRST, *self._question)
        return Part(asked, self._terms.count_bits, {PART: ROWS_FIRST})

    def values(self, rows: Part, union: Union) -> Part:
        """The rest, after ``rows``, at the rows of the union."""
        packed = pack(union)
        asked = union_digest(rows.asked, packed)
        return Part(asked, self._terms.ring_bits, {UNION: packed}, with_model=False)


def union_of(counts: Ring, layout: Layout) -> dict[str, Any]:
    """Return the rows of each table that any client touched; all rows where that is nearly all."""
    found = {}
    for name, clients in zip(layout.tables, rows_counted(counts, layout), strict=True):
        rows = np.flatnonzero(clients)
        found[name] = rows if len(rows) < NEARLY_ALL * len(clients) else np.arange(len(clients))
    return found


def sparing(arrays: NamedArrays, layout: Layout, terms: Terms) -> bool:
    """Return whether counting the rows first would have halved the vector, and spared enough to be worth it.

    arrays: the sum as it travels.
    """
    shapes, metrics = layout.shapes, len(layout.metrics)
    counts = sum(shapes[name][0] for name in layout.tables)
    word = terms.dtype.itemsize
    whole = (entries(shapes, {}, metrics, terms) + counts) * word
    values = entries(shapes, {name: arrays[name + ROWS] for name in layout.tables}, metrics, terms) * word
    parts = values + counts * word_type(terms.count_bits).itemsize
    return 2 * parts <= whole and whole - parts >= LEAST_SPARED


def layout_in(record: ConfigRecord, shapes: Shapes) -> Layout:
    """Return what the entries of a client's vector are. FedMoEError: they are not those that were asked for."""
    try:
        told = str(record["layout"])
        found = json.loads(told)
    except (KeyError, ValueError) as error:
        raise FedMoEError("the masked vector does not say what it holds") from error
    layout = Layout.of_json(found)
    if list(layout.shapes.items()) != list(shapes.items()):
        raise FedMoEError("the masked vector is of other parameters than those that were asked for")
    return layout
