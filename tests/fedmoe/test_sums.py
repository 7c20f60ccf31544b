"""Exact sums: what is added up modulo a power of two is the sum of the clients' integers, whatever they hold."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.errors import FedMoEError
from fedmoe.sums.quantise import (
    CLIPPED,
    FRACTION,
    MAGNITUDE,
    clipping_factor,
    digits_of,
    from_digits,
    quantised,
    rounded,
    to_digits,
)
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import NUMBERS, WHOLE, ExactSum, decoded, entries, touched_vector
from fedmoe.wire import ROWS, NamedArrays
from fedmoe_client.learning.private_reply import SUM_BITS

TERMS = Terms(bits=16, clients=5, norm=2.0, weight=10)
SHAPES = {"body": (3, 2), "table": (6, 2), "gate": ()}
NOTHING = np.zeros(0, np.int32)
EVERY = {"table": np.arange(6)}


def stream(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


def client(number: int, terms: Terms = TERMS, weight: int = 4) -> NamedArrays:
    """Return one client's part of a sum: the body and the gate, and two rows of the table."""
    rng = stream(number)
    rows = np.sort(rng.choice(np.arange(1, 4), 2, replace=False))
    integers, clipped = quantised(rng.normal(0, 0.2, 7 + 4).astype(np.float32), weight, terms, rng)
    metrics = {"loss": float(number), CLIPPED: int(clipped)}
    table = {"table": integers[7:].reshape(2, 2), "table" + ROWS: rows}
    return {WHOLE: integers[:7], **table, NUMBERS: to_digits(metrics, weight, terms)}


def total_of(parts: list[NamedArrays], terms: Terms = TERMS) -> ExactSum:
    total = ExactSum(terms, SHAPES)
    for part in parts:
        total.add(part, ["loss", CLIPPED])
    return total


# --- the ring --------------------------------------------------------------------------------------------------------


@given(bits=st.integers(8, 24), clients=st.integers(1, 5000), sign=st.sampled_from([-1, 1]))
def test_no_sum_wraps_around(bits: int, clients: int, sign: int) -> None:
    """Every client at the largest entry of one sign; with one bit less in the ring the same sum is another one."""
    terms = Terms(bits, clients, 1.0, 1)
    one = terms.in_ring(np.array([sign * terms.largest]))
    total = terms.in_ring(np.full(clients, one[0], terms.dtype).sum(dtype=terms.dtype, keepdims=True))
    assert terms.signed(total).tolist() == [sign * clients * terms.largest]
    smaller = 2 ** (terms.ring_bits - 1)
    assert 2 * clients * terms.largest + 1 > smaller


@settings(deadline=None)
@given(data=st.data(), bits=st.integers(8, 24), clients=st.integers(1, 40))
def test_sums_modulo_the_ring_are_sums(data: Any, bits: int, clients: int) -> None:
    terms = Terms(bits, clients, 1.0, 1)
    entry = st.integers(-terms.largest, terms.largest)
    vectors = data.draw(st.lists(st.lists(entry, min_size=3, max_size=3), min_size=1, max_size=clients))
    ring = [terms.in_ring(np.array(vector)) for vector in vectors]
    assert all(int(vector.max()) < 2**terms.ring_bits for vector in ring)
    total = terms.in_ring(reduce(np.add, ring))
    assert terms.signed(total).tolist() == np.sum(vectors, axis=0).tolist()


def test_a_ring_of_more_than_a_word_takes_two() -> None:
    terms = Terms(24, 5000, 1.0, 1)
    assert (terms.ring_bits, terms.dtype) == (37, np.uint64)
    assert (TERMS.ring_bits, TERMS.dtype) == (19, np.uint32)
    assert terms.signed(terms.in_ring(np.array([-1, 1]))).tolist() == [-1, 1]


def test_terms_travel_in_a_config() -> None:
    assert Terms.of_config(TERMS.to_config() | {"server-round": 3}) == TERMS
    assert SUM_BITS in TERMS.to_config()
    with pytest.raises(FedMoEError, match="how to add up: 'sum-weight'"):
        Terms.of_config({"sum-bits": 16, "sum-clients": 3, "sum-norm": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 7}, "sum_bits must be 0 or 8 to 24, is 7"),
        ({"bits": 25}, "sum_bits must be 0 or 8 to 24, is 25"),
        ({"clients": 0}, "above 0: 0, 10, 2.0"),
        ({"weight": 0}, "above 0: 5, 0, 2.0"),
        ({"norm": float("inf")}, "above 0: 5, 10, inf"),
        ({"clients": 2**60}, "do not fit into 62 bits"),
    ],
)
def test_terms_with_which_nothing_can_be_added_up_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FedMoEError, match=message):
        replace(TERMS, **change)


# --- one client's integers -------------------------------------------------------------------------------------------


def test_rounding_is_right_on_average_and_leaves_whole_numbers() -> None:
    values = np.array([0.0, 3.0, -2.0, 0.25, -0.25, 7.9], np.float32)
    many = rounded(np.tile(values, (40_000, 1)), stream())
    assert (many[:, :3] == [0, 3, -2]).all()
    assert set(np.unique(many[:, 3])) == {0, 1} and set(np.unique(many[:, 4])) == {-1, 0}
    np.testing.assert_allclose(many.mean(axis=0), values, atol=0.015)  # five deviations of a mean of 40,000


def test_an_update_is_clipped_weighted_and_scaled() -> None:
    """Worked by hand: norm 5 clipped to 2, times 4 of 10, in units of 2 / 32767."""
    update = np.array([3.0, -4.0], np.float32)
    assert clipping_factor(update, 2.0) == pytest.approx(0.4)
    integers, clipped = quantised(update, 4, TERMS, stream())
    assert clipped
    assert integers.dtype == np.int32
    assert (np.abs(integers - update * 0.4 * 0.4 / 2 * 32767) <= 1).all()
    assert not quantised(update[:1] - np.float32(1.1), 4, TERMS, stream())[1]


@given(bits=st.integers(8, 24), norm=st.floats(1e-6, 1e6), length=st.floats(1e-6, 1e6), weight=st.integers(1, 200_000))
def test_no_entry_is_beyond_the_largest(bits: int, norm: float, length: float, weight: int) -> None:
    """The whole norm in one entry and a weight that may be above the largest one: where overflow would begin."""
    terms = Terms(bits, 3, norm, 100)
    integers, _ = quantised(np.array([length, 0.0], np.float32), weight, terms, stream())
    assert 0 <= integers[0] <= terms.largest and integers[1] == 0
    if length >= norm and weight >= 100:
        assert integers[0] >= terms.largest - 1  # and the whole range is used


def test_an_update_that_is_not_finite_fails() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        quantised(np.array([np.inf], np.float32), 1, TERMS, stream())
    with pytest.raises(FloatingPointError, match="'loss' is not finite"):
        to_digits({"loss": float("nan")}, 1, TERMS)
    with pytest.raises(FedMoEError, match="'many' is a list"):
        to_digits({"many": [1.0]}, 1, TERMS)  # type: ignore[dict-item]


@given(
    bits=st.integers(8, 24),
    clients=st.lists(
        st.tuples(st.integers(1, 100_000), st.floats(-(2.0**MAGNITUDE), 2.0**MAGNITUDE)), min_size=1, max_size=8
    ),
)
def test_digits_add_up_to_the_sum_of_the_numbers(bits: int, clients: list[tuple[int, float]]) -> None:
    terms = Terms(bits, len(clients), 1.0, 100_000)
    digits = [to_digits({"m": value}, weight, terms) for weight, value in clients]
    assert all(abs(each).max() <= terms.largest for each in digits)
    ring = terms.in_ring(reduce(np.add, [terms.in_ring(each) for each in digits]))
    weight, number = from_digits(terms.signed(ring), terms)
    assert weight == sum(weight for weight, _ in clients) << FRACTION
    wanted = [round(weight * value * 2**FRACTION) for weight, value in clients]
    assert number == sum(wanted)
    assert digits_of(terms) * (bits - 1) >= 17 + FRACTION + MAGNITUDE


# --- sums ------------------------------------------------------------------------------------------------------------


def test_adding_up_vectors_is_adding_up_parts() -> None:
    """What a deployment masks is, vector by vector, what a simulation adds up in parts, over the union or whole."""
    parts = [client(number) for number in range(4)]
    total = total_of(parts)
    union, every = total.union(), {"table": np.arange(6)}
    assert union["table"].tolist() == [1, 2, 3]
    for rows in (union, every):
        vectors = [total_of([part]).vector(rows) for part in parts]
        assert all(len(vector) == entries(SHAPES, rows, 2, TERMS) for vector in vectors)
        assert TERMS.in_ring(reduce(np.add, vectors)).tolist() == total.vector(rows).tolist()
    counts = reduce(np.add, [touched_vector(part["table" + ROWS], 6, TERMS) for part in parts])
    assert counts.tolist() == total.touched["table"].tolist()
    whole, over = (decoded(total.vector(rows), SHAPES, rows, ["loss", CLIPPED], TERMS) for rows in (every, union))
    assert whole.metrics == over.metrics
    for name, shape in SHAPES.items():
        assert whole.updates[name].shape == shape
        np.testing.assert_array_equal(whole.updates[name], over.updates[name])


def test_a_sum_of_sums_is_the_sum_in_any_order() -> None:
    parts = [client(number) for number in range(5)]
    halves = [total_of(parts[3:]), total_of(parts[:3])]
    joined = ExactSum(TERMS, SHAPES)
    for half, clients in zip(halves, (2, 3), strict=True):
        joined.add(half.travelling(), ["loss", CLIPPED], clients)
    whole = total_of(parts)
    assert joined.clients == whole.clients == 5
    assert joined.vector(EVERY).tolist() == whole.vector(EVERY).tolist()
    assert joined.touched["table"].tolist() == whole.touched["table"].tolist()


def test_the_sum_gives_the_weighted_means() -> None:
    """Against the means of floats; rows that nobody touched come out as exactly zero."""
    terms, weights = Terms(20, 3, 5.0, 9), [2, 9, 5]
    rng = stream(7)
    updates = [rng.normal(0, 1, (2, 2)).astype(np.float32) for _ in weights]
    total = ExactSum(terms, {"table": (4, 2)})
    for number, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        integers, clipped = quantised(update.ravel(), weight, terms, stream(number))
        assert not clipped
        part = {WHOLE: integers[:0], "table": integers.reshape(2, 2), "table" + ROWS: np.array([1, 3])}
        total.add(part | {NUMBERS: to_digits({"loss": 0.1 * number}, weight, terms)}, ["loss"])
    union = total.union()
    found = decoded(total.vector(union), total.shapes, union, ["loss"], terms)
    assert found.weight == 16
    assert found.metrics["loss"] == pytest.approx(float(Fraction(19, 160)), abs=1e-7)
    mean = sum(weight * update for weight, update in zip(weights, updates, strict=True)) / 16
    np.testing.assert_allclose(found.updates["table"][[1, 3]], mean, atol=3 * terms.unit / 16)
    assert not np.allclose(found.updates["table"][[1, 3]], updates[0], atol=0.05)
    assert not found.updates["table"][[0, 2]].any()


def test_where_nearly_all_rows_are_touched_the_whole_table_is_added_up() -> None:
    total = ExactSum(TERMS, {"table": (10, 1)})
    for rows, union in (([1, 2, 3], [1, 2, 3]), (list(range(1, 10)), list(range(10)))):
        part = {"table": np.ones((len(rows), 1), np.int32), "table" + ROWS: np.array(rows), WHOLE: NOTHING}
        total.add(part | {NUMBERS: to_digits({}, 1, TERMS)}, [])
        assert total.union()["table"].tolist() == union


def test_a_sum_of_metrics_alone() -> None:
    total = ExactSum(TERMS, {})
    for hit in (1.0, 0.0, 1.0):
        total.add({WHOLE: NOTHING, NUMBERS: to_digits({"hr@10": hit}, 1, TERMS)}, ["hr@10"])
    assert decoded(total.vector({}), {}, {}, ["hr@10"], TERMS).metrics["hr@10"] == pytest.approx(2 / 3, abs=1e-12)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({WHOLE: np.ones(7, np.float32)}, "'whole' must be integers .7., is float32"),
        ({WHOLE: np.ones(6, np.int32)}, r"'whole' must be integers \[7\], is int32 \[6\]"),
        ({WHOLE: None}, "'whole' must be integers .* is missing"),
        ({"table": np.ones((3, 2), np.int32)}, r"'table' must be integers \[2, 2\], is int32 \[3, 2\]"),
        ({"table" + ROWS: np.array([2, 1])}, "ascending, distinct"),
        ({"table" + ROWS: np.array([2, 6])}, "within 0..5"),
        ({"table" + ROWS: np.array([1.0, 2.0])}, "must be a list of int64"),
        ({"table": None, "table" + ROWS: None}, "a table whole of which others send rows"),
        ({"other": np.ones(1, np.int32)}, "'other' is not aggregated"),
        ({NUMBERS: np.ones((1, 3), np.int32)}, "not in the digits"),
        ({NUMBERS: None}, "not in the digits"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(spoilt: dict[str, Any], message: str) -> None:
    total = total_of([client(0)])
    before = total.vector(EVERY).tolist()
    part = {name: array for name, array in (client(1) | spoilt).items() if array is not None}
    with pytest.raises(FedMoEError, match=message):
        total.add(part, ["loss", CLIPPED])
    assert (total.clients, total.vector(EVERY).tolist()) == (1, before)


def test_other_metrics_and_more_clients_than_agreed_are_refused() -> None:
    total = total_of([client(0)])
    with pytest.raises(FedMoEError, match="its metrics are"):
        total.add(client(1), [CLIPPED, "loss"])
    with pytest.raises(FedMoEError, match="more than 5 clients"):
        total.add(client(1), ["loss", CLIPPED], clients=5)
    with pytest.raises(FedMoEError, match="clients and server differ"):
        decoded(total.vector(EVERY)[:-1], SHAPES, EVERY, ["loss", CLIPPED], TERMS)
    with pytest.raises(FedMoEError, match="weights is not above 0"):
        decoded(np.zeros_like(total.vector(EVERY)), SHAPES, EVERY, ["loss", CLIPPED], TERMS)
