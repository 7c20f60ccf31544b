"""Any threshold of shares gives the secret; one fewer says nothing at all."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.secure.shamir import PRIME, combine, split

SECRETS = st.integers(0, 2**256 - 1)


def test_a_line_through_two_points_by_hand() -> None:
    # 3 + 5x modulo 7 at 1, 2 and 3
    assert split(3, 2, [1, 2, 3], prime=7, draw=lambda below: 5) == [1, 6, 4]
    assert combine({1: 1, 3: 4}, 2, prime=7) == 3


@given(SECRETS, st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: int, data: st.DataObject) -> None:
    points = data.draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=12, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    shares = dict(zip(points, split(secret, threshold, points), strict=True))
    chosen = data.draw(st.permutations(points))[: data.draw(st.integers(threshold, len(points)))]
    assert combine({point: shares[point] for point in chosen}, threshold) == secret


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_are_distributed_alike_whatever_the_secret(threshold: int) -> None:
    prime, points = 5, [1, 2, 3, 4]
    for seen in combinations(range(len(points)), threshold - 1):
        tables = []
        for secret in range(prime):
            table: Counter[tuple[int, ...]] = Counter()
            for coefficients in product(range(prime), repeat=threshold - 1):
                drawn = iter(coefficients)
                shares = split(secret, threshold, points, prime, lambda below, drawn=drawn: next(drawn))
                table[tuple(shares[place] for place in seen)] += 1
            tables.append(table)
        assert all(table == tables[0] for table in tables)
        assert len(tables[0]) == prime ** (threshold - 1)  # and any shares can be seen
    # With all that the threshold asks for, no two secrets give the same shares: the comparison above can fail.
    assert len({tuple(split(s, threshold, points, prime, lambda below: 1)[:threshold]) for s in range(prime)}) == prime


@given(SECRETS, SECRETS, st.integers(2, 6))
def test_every_secret_is_consistent_with_too_few_shares(secret: int, other: int, threshold: int) -> None:
    points = list(range(1, threshold + 1))
    shares = dict(zip(points, split(secret, threshold, points), strict=True))
    missing = shares.pop(threshold)
    # There is a share of the missing holder with which the others give any other secret.
    weight = (combine({**shares, threshold: 1}, threshold) - combine({**shares, threshold: 0}, threshold)) % PRIME
    wanted = (missing + (other - secret) * pow(weight, -1, PRIME)) % PRIME
    assert combine({**shares, threshold: wanted}, threshold) == other


def test_too_few_distinct_shares_are_refused() -> None:
    shares = dict(zip([1, 2, 3], split(9, 3, [1, 2, 3]), strict=True))
    with pytest.raises(ValueError, match="2 shares of the 3"):
        combine({1: shares[1], 2: shares[2]}, 3)
    with pytest.raises(ValueError):
        combine({1: shares[1], 2: shares[2], 2 + PRIME: shares[2]}, 3)  # one point by two names


@pytest.mark.parametrize("points", [[0, 1], [1, 1], [1, 1 + PRIME], [PRIME, 2]])
def test_points_that_would_give_the_secret_away_are_refused(points: list[int]) -> None:
    with pytest.raises(ValueError, match="distinct"):
        split(1, 2, points)


def test_the_field_is_one() -> None:
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11, 13))
