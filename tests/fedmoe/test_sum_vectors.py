"""A client's answer as one vector: adding vectors is adding answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fedmoe.errors import FedMoEError
from fedmoe.sums.quantise import digits_of
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import COUNTS, NUMBERS, WHOLE, ExactSum
from fedmoe.sums.vectors import (
    Layout,
    checked_union,
    from_sums,
    from_vector,
    layout_of,
    rows_counted,
    to_counts,
    to_values,
    to_vector,
)
from fedmoe.wire import ROWS

TERMS = Terms(bits=16, clients=3, norm=1.0, weight=10)


def answer(rows: list[int], seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    numbers = draw.integers(-9, 9, (2, digits_of(TERMS)))
    table = draw.integers(-(2**15) + 1, 2**15, (len(rows), 2))
    arrays = {WHOLE: draw.integers(-5, 5, 3), "table": table, f"table{ROWS}": rows, NUMBERS: numbers}
    return {name: np.array(array, np.int64 if name.endswith(ROWS) else np.int32) for name, array in arrays.items()}


def test_adding_vectors_is_adding_answers() -> None:
    answers = [answer([1, 3], 0), answer([3], 1), answer([0, 3, 4], 2)]
    layout = layout_of(answers[0], ["loss"], {"body": (3,), "table": (6, 2)})
    assert layout.tables == ("table",)
    total = ExactSum(TERMS, layout.shapes)
    for each in answers:
        total.add(each, ["loss"])
    vectors = [to_vector(each, layout, TERMS) for each in answers]
    assert all(int(vector.max()) < 2**TERMS.ring_bits for vector in vectors)
    added = TERMS.in_ring(np.sum(vectors, axis=0, dtype=TERMS.dtype))
    found = from_vector(added, layout, TERMS)
    assert found[f"table{ROWS}"].tolist() == [0, 1, 3, 4]
    assert found[f"table{COUNTS}"].tolist() == [1, 1, 3, 1]
    again = ExactSum(TERMS, layout.shapes)
    again.add(found, ["loss"], clients=3)
    every = {"table": np.arange(6)}
    assert (again.vector(every) == total.vector(every)).all()
    assert again.touched["table"].tolist() == total.touched["table"].tolist()


@pytest.mark.parametrize("union", [[0, 1, 3, 4], [0, 1, 2, 3, 4, 5]])
def test_two_sums_say_what_the_one_says(union: list[int]) -> None:
    answers = [answer([1, 3], 0), answer([3], 1), answer([0, 3, 4], 2)]
    layout = layout_of(answers[0], ["loss"], {"body": (3,), "table": (6, 2)})
    one = from_vector(TERMS.in_ring(sum(to_vector(each, layout, TERMS) for each in answers)), layout, TERMS)
    counts = sum(to_counts(each, layout, TERMS) for each in answers)
    assert [each.tolist() for each in rows_counted(counts, layout)] == [[1, 1, 0, 3, 1, 0]]
    rows = {"table": np.array(union)}
    values = TERMS.in_ring(sum(to_values(each, layout, TERMS, rows) for each in answers))
    assert len(values) == 2 * digits_of(TERMS) + 3 + 2 * len(union)
    two = from_sums(values, counts, rows, layout, TERMS)
    assert list(one) == list(two)
    assert all((one[name] == two[name]).all() and one[name].dtype == two[name].dtype for name in one)


def test_rows_that_are_none_of_a_table_are_refused() -> None:
    layout = layout_of(answer([1], 0), ["loss"], {"body": (3,), "table": (6, 2)})
    assert checked_union({"table": np.array([0, 5])}, layout)["table"].tolist() == [0, 5]
    for rows in ([1, 1], [2, 1], [-1], [6], [[1]], [1.0], None):
        union = {} if rows is None else {"table": np.array(rows)}
        with pytest.raises(FedMoEError, match="the rows of 'table' that are to be added up"):
            checked_union(union, layout)


def test_a_layout_travels_as_json() -> None:
    layout = layout_of(answer([1], 0), ["loss"], {"body": (3,), "table": (6, 2)})
    assert Layout.of_json(json.loads(json.dumps(layout.to_json()))) == layout
    for wrong in ({}, [], {"shapes": [["a", "x"]], "tables": [], "metrics": []}, layout.to_json() | {"tables": ["b"]}):
        with pytest.raises(FedMoEError, match="the masked vector"):
            Layout.of_json(wrong)


def test_a_vector_of_another_length_is_refused() -> None:
    layout = layout_of(answer([1], 0), ["loss"], {"body": (3,), "table": (6, 2)})
    with pytest.raises(FedMoEError, match="clients and server differ in their model"):
        from_vector(np.zeros(5, TERMS.dtype), layout, TERMS)
