"""The attack on sums over cohorts where the answer is known: it finds what rounds determine, not what noise hides."""

from __future__ import annotations

import numpy as np

from benchmarks.attacks.sums import Seen, Update, aucs, best, clipped, noisy, regressed, run_of

USERS, ITEMS, WIDTH = 12, 30, 3
MET = np.random.default_rng(4).random((USERS, ITEMS)) < 0.3


def updates() -> list[list[Update]]:
    """Return of each user one update, the same in all rounds: the rows of what it has met."""
    return [
        [(np.flatnonzero(known) + 1, np.full((int(known.sum()), WIDTH), user + 1, np.float32))]
        for user, known in enumerate(MET)
    ]


def seen(rounds: int) -> Seen:
    return run_of(updates(), ITEMS, 4, rounds, seed=1)


def test_a_run_adds_up_who_took_part() -> None:
    found = seen(3)
    assert (found.cohorts.sum(axis=1) == 4).all()
    for cohort, changes, counts in zip(found.cohorts, found.changes, found.counts, strict=True):
        there = np.flatnonzero(cohort)
        np.testing.assert_array_equal(counts[1:], MET[there].sum(axis=0))
        np.testing.assert_array_equal(changes[1:, 0], (MET[there] * (there + 1)[:, None]).sum(axis=0))
        assert counts[0] == 0


def test_a_clients_rounds_use_its_updates_in_turn() -> None:
    two = [[(np.array([1]), np.ones((1, 1), np.float32)), (np.array([2]), np.ones((1, 1), np.float32))]]
    np.testing.assert_array_equal(run_of(two, 2, 1, 3, seed=1).counts, [[0, 1, 0], [0, 0, 1], [0, 1, 0]])


def test_enough_rounds_determine_every_users_part() -> None:
    found = seen(400)
    parts = regressed(found.counts, found.cohorts, range(USERS), 1e-3)
    np.testing.assert_allclose(parts[:, 1:], MET, atol=0.05)
    assert min(best(found, range(USERS), MET, True)) == 1.0


def test_without_evidence_each_user_is_the_mean_of_all() -> None:
    found = seen(50)
    parts = regressed(found.counts, found.cohorts, [0, 5], 1e9)
    np.testing.assert_allclose(parts, np.stack([found.counts.mean(axis=0) / 4] * 2), atol=1e-4)


def test_noise_hides_what_it_is_much_longer_than() -> None:
    blurred = noisy(seen(400), 1e4, seed=2)
    parts = regressed(blurred.changes, blurred.cohorts, range(USERS), 1.0)
    assert all(abs(each - 0.5) < 0.1 for each in aucs(parts[:, 1:, 0], MET))


def test_popularity_alone_tells_nothing_of_single_users() -> None:
    popular = np.tile(MET.sum(axis=0), (USERS, 1))
    over_items, over_users = aucs(popular, MET)
    assert over_items > 0.6 and over_users == 0.5


def test_clipping_keeps_short_updates() -> None:
    rows, change = np.array([1]), np.full((1, 2), 3.0, np.float32)
    np.testing.assert_array_equal(clipped(((rows, change), 10.0), 5.0)[1], change / 2)
    np.testing.assert_array_equal(clipped(((rows, change), 4.0), 5.0)[1], change)
