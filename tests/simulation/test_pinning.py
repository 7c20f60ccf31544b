"""Clients are dealt out to hosts evenly."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.errors import FedMoEError
from simulation.pinning import EVEN, even_out, pin_clients


def test_without_loads_it_is_the_id_modulo_hosts() -> None:
    assert pin_clients(5, 2).tolist() == [0, 1, 0, 1, 0]


def test_by_hand() -> None:
    # 7 | 5; then 4 to the second (9), 3 to the first (10), 1 to the second (10).
    assert pin_clients(5, 2, [5, 3, 7, 1, 4]).tolist() == [1, 0, 0, 1, 1]
    assert pin_clients(4, 2, [0, 0, 0, 0]).tolist() == [0, 1, 0, 1]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 7))
def test_hosts_differ_by_one_client_at_most(loads: list[int], hosts: int) -> None:
    pinning = pin_clients(len(loads), hosts, loads)
    assert ((pinning >= 0) & (pinning < hosts)).all()
    sums = np.bincount(pinning, weights=loads, minlength=hosts)
    assert sums.max() - sums.min() <= max(loads)


def test_a_million_clients_take_no_time() -> None:
    loads = np.random.default_rng(0).pareto(1.5, 1_000_000) * 20
    began = time.process_time()
    pinning = pin_clients(len(loads), 4, loads)
    assert time.process_time() - began < 5  # about a half second on an idle machine
    sums = np.bincount(pinning, weights=loads)
    assert sums.max() / sums.min() < 1.0001


@pytest.mark.parametrize("loads", [[1, 2], [1, 2, -1], [1, 2, np.nan], [[1, 2, 3]]])
def test_what_is_no_load(loads: object) -> None:
    with pytest.raises(FedMoEError, match="loads"):
        pin_clients(3, 2, loads)  # type: ignore[arg-type]


def test_lending_by_hand() -> None:
    # Host 0 has 2 + 5 + 4 + 1 = 12, host 1 has 4. Half of the difference is 4: the client of 4 goes, and both have 8.
    homes, costs = np.array([0, 0, 0, 1, 0]), np.array([2.0, 5.0, 4.0, 4.0, 1.0])
    assert even_out(homes, costs, 2).tolist() == [0, 0, 1, 1, 0]
    assert homes.tolist() == [0, 0, 0, 1, 0]
    assert even_out(np.array([0]), np.array([3.0]), 2).tolist() == [0], "moving all of the difference gains nothing"
    assert even_out(np.array([0, 0]), np.zeros(2), 2).tolist() == [0, 0]
    assert even_out(np.array([], np.int32), np.array([]), 2).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1000)), min_size=1, max_size=60), st.integers(0, 3))
def test_lending_evens_the_work_out(clients: list[tuple[int, int]], more: int) -> None:
    homes, costs = np.array([home for home, _ in clients]), np.array([float(cost) for _, cost in clients])
    hosts = int(homes.max()) + 1 + more
    places = even_out(homes, costs, hosts)
    before, after = (np.bincount(where, weights=costs, minlength=hosts) for where in (homes, places))
    assert ((places >= 0) & (places < hosts)).all()
    assert after.max() <= before.max() and after.min() >= before.min()
    own = costs[(places == after.argmax()) & (homes == after.argmax())]
    difference = after.max() - after.min()
    assert difference <= EVEN * after.mean() or not ((own > 0) & (own < difference)).any(), "nothing is left to lend"


def test_lending_takes_no_time() -> None:
    rng = np.random.default_rng(0)
    homes, costs = rng.integers(0, 64, 20_000), rng.pareto(1.5, 20_000) + 1
    began = time.process_time()
    work = np.bincount(even_out(homes, costs, 64), weights=costs)
    assert time.process_time() - began < 2  # about a tenth of a second on an idle machine
    assert work.max() < 1.02 * np.bincount(homes, weights=costs).max()
