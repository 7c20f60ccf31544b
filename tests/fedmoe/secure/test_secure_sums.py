"""Whoever vanishes in whatever phase: the sum of the others is exact, or there is none."""

from __future__ import annotations

from dataclasses import replace
from math import floor

import numpy as np
import pytest
from cohort import PHASES, SESSION, Cohort, vectors_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.errors import FedMoEError
from fedmoe.secure import graph
from fedmoe.secure.failures import CorruptShares, TooFewClients
from fedmoe.secure.messages import Invitation, Masked, Revealed, SignedKeys, Terms
from fedmoe.secure.server import SecureSum

TERMS = Terms(3, 0.4, 0.1)


@st.composite
def cohorts(draw: st.DrawFn, lost: bool) -> Cohort:
    """Draw a cohort in which, after the phase of keys, as many vanish as may, or more."""
    size = draw(st.integers(5, 9))
    late = draw(st.integers(0, size - 4))  # these never send keys, and are no members
    allowed = floor(TERMS.dropouts * (size - late))
    gone = draw(st.integers(allowed + 1, size - late)) if lost else draw(st.integers(0, allowed))
    order = draw(st.permutations(range(10, 10 + size)))
    vanish: dict[str, list[int]] = {"keys": list(order[:late])}
    for client in order[late : late + gone]:
        vanish.setdefault(draw(st.sampled_from(PHASES[1:])), []).append(client)
    return Cohort(
        size,
        TERMS,
        bits=draw(st.sampled_from([1, 8, 9, 16, 20, 31, 32, 33, 64])),
        length=draw(st.integers(0, 20)),
        seed=draw(st.integers(0, 2**32)),
        vanish=vanish,
        short=draw(st.booleans()),
    )


@settings(max_examples=20)
@given(cohorts(lost=False))
def test_the_sum_is_exact_for_any_dropouts_that_the_terms_allow(cohort: Cohort) -> None:
    total = cohort.sum()
    assert total.dtype == cohort.expected().dtype
    assert (total == cohort.expected()).all()
    assert cohort.server.refused == {}


@settings(max_examples=20)
@given(cohorts(lost=True))
def test_with_more_dropouts_there_is_no_sum(cohort: Cohort) -> None:
    with pytest.raises(TooFewClients, match="secure sum 3:"):
        cohort.sum()


def test_a_wrong_plain_sum_would_be_noticed() -> None:
    cohort = Cohort(5, vanish={"masked": [11]})
    total = cohort.sum()
    everyone = sum(cohort.vectors.values(), start=np.zeros(5, np.uint32))
    assert not (total == everyone).all()


@pytest.mark.parametrize("vanish", [{}, {"shares": [20], "masked": [12, 30], "agreed": [15], "unmasked": [14]}])
def test_a_sparse_graph_gives_the_exact_sum(sparse: Cohort, vanish: dict[str, list[int]]) -> None:
    plan = graph.plan(sparse.size, sparse.terms)
    assert plan.reach is not None
    assert 2 * plan.reach <= 20
    cohort = replace(sparse, vanish=vanish)
    assert (cohort.sum() == cohort.expected()).all()


@given(st.integers(4, 400), st.floats(0, 0.4), st.floats(0, 0.15))
def test_every_plan_keeps_its_word(members: int, dropouts: float, corrupt: float) -> None:
    plan = graph.plan(members, Terms(3, dropouts, corrupt))
    gone, accomplices = floor(dropouts * members), floor(corrupt * members)
    assert plan.threshold <= members - gone  # a secret can be had
    assert 2 * plan.quorum - members > accomplices  # two quorums have an honest client in common
    assert plan.quorum <= members - gone
    if plan.reach is None:
        assert accomplices < plan.threshold  # all hold shares; below, those among the holders of one secret are fewer
        return
    assert plan.threshold == 2 * plan.needed - 1 < 2 * plan.reach + 1
    # Sampling says the same as the tails: in random orders no stretch holds too many of either kind.
    draw = np.random.default_rng(0)
    for kind, allowed in ((accomplices, plan.needed - 1), (gone, plan.reach - plan.needed)):
        for _ in range(20):
            marked = draw.permutation(members) < kind
            stretches = np.convolve(np.concatenate([marked, marked[: plan.reach - 1]]), np.ones(plan.reach), "valid")
            assert stretches.max() <= allowed


def test_a_ring_by_hand() -> None:
    ring = graph.Ring([3, 1, 2, 4, 5, 6], b"keys", graph.Plan(6, 1, 1, 1, 4, 3))
    order = ring.order
    assert sorted(order) == [1, 2, 3, 4, 5, 6]
    assert ring.neighbours(order[0]) == [order[5], order[1]]
    assert ring.holders(order[2]) == {order[1]: 2, order[3]: 4, order[2]: 3}
    assert ring.shortfall(order) is None
    assert "0 of 1 clients in a row" in str(ring.shortfall(order[:3]))
    assert graph.Ring(order, b"other keys", ring.plan).order != order


def test_wrong_shares_are_noticed_and_give_no_sum() -> None:
    cohort = Cohort(5)
    unmasking = cohort.until_unmasking()
    answers = [cohort.client(client).unmask(unmasking) for client in unmasking.survivors[:3]]  # as few as may be
    liar = answers[0]
    answers[0] = Revealed(liar.client, {owner: share + 1 for owner, share in liar.seeds.items()}, liar.keys)
    with pytest.raises(CorruptShares, match="is not the one that it promised"):
        cohort.server.sum(answers)


def test_answers_that_do_not_fit_are_left_out_with_a_reason() -> None:
    cohort = Cohort(5)
    keys = cohort.sent_keys()
    forged = SignedKeys(10, *(keys[1].sealing, keys[1].masking, keys[1].promise), keys[0].signature)
    cohort.server.members([forged, *keys[1:]])
    assert list(cohort.server.refused) == [10]
    assert "not signed" in cohort.server.refused[10]

    cohort = Cohort(5)
    cohort.until_deliveries()
    good = vectors_of(range(10, 15), 5, 32, 1)
    cohort.server.add(Masked(10, good[10]))
    for client, words in ((10, good[10]), (11, good[11][:3]), (12, good[12].astype(np.uint64)), (99, good[13])):
        cohort.server.add(Masked(client, words))
    assert set(cohort.server.refused) == {10, 11, 12, 99}


def test_terms_that_cannot_be_kept_are_refused_before_anyone_shares() -> None:
    with pytest.raises(FedMoEError, match="5 clients cannot sum securely if 2 may drop out and 2 may be in league"):
        graph.plan(5, Terms(3, 0.4, 0.4))
    with pytest.raises(FedMoEError, match="from 0 to below 1"):
        graph.plan(5, Terms(3, float("nan"), 0.1))
    server = SecureSum(SESSION, Terms(4, 0.2, 0.1), {})
    with pytest.raises(TooFewClients, match="0 clients sent keys, 4 are needed"):
        server.members([])


def test_a_sum_that_is_prepared_while_another_goes_on() -> None:
    """Both are exact, and they have no secret in common."""
    first, second = Cohort(5), Cohort(5, session=replace(SESSION, number=4), seed=1, vanish={"masked": [12]})
    second.notebooks = first.notebooks
    first.until_masked()
    survivors = first.server.survivors()
    agreed = [first.client(client).agree(survivors) for client in first.ids]
    members = second.until_members()
    both = first.notebooks[10].read()["sums"]
    assert len({each[name] for each in both for name in ("seed", "masking", "sealing")}) == 6
    unmasking = first.server.unmasking(agreed)
    revealed = [first.client(client).unmask(unmasking) for client in first.ids]
    shares = [second.client(client).share(members) for client in second.ids]
    assert (first.server.sum(revealed) == first.expected()).all()
    for client, request in second.server.deliveries(shares).items():
        if client != 12:
            second.server.add(second.client(client).mask(request, second.vectors[client], second.bits))
    survivors = second.server.survivors()
    unmasking = second.server.unmasking([second.client(client).agree(survivors) for client in survivors.survivors])
    revealed = [second.client(client).unmask(unmasking) for client in survivors.survivors]
    assert (second.server.sum(revealed) == second.expected()).all()


def test_a_client_remembers_two_sums_of_a_run_and_no_more() -> None:
    cohort = Cohort(5)
    client, terms = cohort.client(10), cohort.terms
    for number in (3, 4, 5):
        client.keys(Invitation(replace(SESSION, number=number), terms))
    client.keys(Invitation(replace(SESSION, run="8"), terms))
    noted = [each["session"] for each in cohort.notebooks[10].read()["sums"]]
    assert noted == [["7", 4], ["7", 5], ["8", 3]]
    for run in range(20):
        client.keys(Invitation(replace(SESSION, run=f"other {run}"), terms))
    assert len(cohort.notebooks[10].read()["sums"]) == 8
