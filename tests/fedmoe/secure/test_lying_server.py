"""A server that lies: the clients refuse, with the reason, and nothing that hides a vector has left them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from math import floor

import pytest
from cohort import SESSION, Cohort, admitted, line, signer
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.errors import FedMoEError
from fedmoe.secure.client import SecureClient
from fedmoe.secure.failures import Refusal, RefusalKind, TooFewClients
from fedmoe.secure.graph import plan
from fedmoe.secure.messages import Delivery, Invitation, Members, Session, SignedKeys, Survivors, Terms, Unmasking
from fedmoe.secure.notes import MemoryNotebook
from fedmoe.secure.primitives import public_of, random_key

ME = 10


def refused(kind: RefusalKind, words: str, ask: Callable[[], object]) -> None:
    with pytest.raises(Refusal, match=words) as caught:
        ask()
    assert caught.value.kind == kind


def signed(client: int, request: Invitation, by: int | None = None) -> SignedKeys:
    """Return keys that the server has made itself, signed by a client (or its puppet)."""
    keys = SignedKeys(client, public_of(random_key()), public_of(random_key()), bytes(32), b"")
    return replace(keys, signature=signer(client if by is None else by).sign(keys.content(request)))


def test_swapped_keys() -> None:
    cohort = Cohort(5)
    keys = cohort.sent_keys()
    for part in ("sealing", "masking", "promise"):
        swapped = replace(keys[2], **{part: public_of(random_key())})
        request = Members(SESSION, (*keys[:2], swapped, *keys[3:]))
        refused(RefusalKind.SIGNATURE, "12: its keys are not signed", lambda r=request: cohort.client(ME).share(r))
    # Also if the server signs them with the key of a client that it has in its pocket.
    request = Members(SESSION, (*keys[:2], signed(12, cohort.invitation(), by=14), *keys[3:]))
    refused(RefusalKind.SIGNATURE, "client 12: its keys", lambda: cohort.client(ME).share(request))
    assert set(cohort.client(ME).share(Members(SESSION, tuple(keys))).sealed) == {11, 12, 13, 14}  # the honest ones


def test_keys_that_were_signed_for_another_round_or_on_other_terms() -> None:
    cohort = Cohort(5)
    keys = cohort.sent_keys()
    for other in (
        Invitation(replace(SESSION, number=2), cohort.terms),
        Invitation(replace(SESSION, run="8"), cohort.terms),
        Invitation(SESSION, replace(cohort.terms, corrupt=0.2)),
    ):
        request = Members(SESSION, (*keys[:2], signed(12, other), *keys[3:]))
        refused(RefusalKind.SIGNATURE, "client 12", lambda r=request: cohort.client(ME).share(r))


def test_own_keys_swapped() -> None:
    cohort = Cohort(5)
    keys = cohort.sent_keys()
    request = Members(SESSION, (signed(ME, cohort.invitation()), *keys[1:]))
    refused(RefusalKind.OWN_KEYS, "this client's keys", lambda: cohort.client(ME).share(request))
    refused(RefusalKind.OWN_KEYS, "this client's", lambda: cohort.client(ME).share(Members(SESSION, tuple(keys[1:]))))


def test_a_member_whose_key_is_not_admitted() -> None:
    cohort = Cohort(5)
    keys = cohort.sent_keys()
    request = Members(SESSION, (*keys, signed(99, cohort.invitation())))
    refused(RefusalKind.NOT_ADMITTED, "client 99 has no admitted key", lambda: cohort.client(ME).share(request))
    # A roster of one's own is what counts, whomever the server has admitted.
    own = SecureClient(signer(ME), admitted([10, 11, 12, 13]), cohort.notebooks[ME])
    refused(RefusalKind.NOT_ADMITTED, "client 14", lambda: own.share(Members(SESSION, tuple(keys))))


def test_a_member_twice() -> None:
    cohort = Cohort(5)
    keys = cohort.sent_keys()
    again = Members(SESSION, (*keys, signed(11, cohort.invitation())))
    refused(RefusalKind.GRAPH, "a member twice", lambda: cohort.client(ME).share(again))


def test_a_cohort_of_one_or_one_too_small() -> None:
    cohort = Cohort(5)
    alone = Invitation(SESSION, Terms(1, 0.4, 0.1))
    refused(RefusalKind.COHORT, "may be over 1 clients, this client asks for 3", lambda: cohort.client(ME).keys(alone))
    asking = SecureClient(signer(ME), admitted(cohort.ids), MemoryNotebook(), smallest=20)
    refused(RefusalKind.COHORT, "asks for 20", lambda: asking.keys(cohort.invitation()))
    keys = cohort.sent_keys()
    for few in (1, 2):
        request = Members(SESSION, tuple(keys[:few]))
        refused(RefusalKind.COHORT, f"{few} .*(needed|securely)", lambda r=request: cohort.client(ME).share(r))


def test_terms_that_make_every_neighbour_a_holder_of_everything() -> None:
    careless = Invitation(SESSION, Terms(3, 0.1, 0.0))
    refused(RefusalKind.TERMS, "a share of 0 .* this client expects 0.1", lambda: Cohort(5).client(ME).keys(careless))


def test_a_replayed_round() -> None:
    cohort = Cohort(5)
    cohort.sum()
    client = cohort.client(ME)
    refused(RefusalKind.REPLAYED, "secure sum 3: .* has begun it before", lambda: client.keys(cohort.invitation()))
    earlier = Invitation(replace(SESSION, number=2), cohort.terms)
    refused(RefusalKind.REPLAYED, "secure sum 2", lambda: client.keys(earlier))
    client.keys(Invitation(replace(SESSION, run="8"), cohort.terms))  # another run has rounds of its own
    refused(RefusalKind.REPLAYED, "secure sum 3", lambda: client.keys(cohort.invitation()))
    client.keys(Invitation(replace(SESSION, number=4), cohort.terms))
    refused(RefusalKind.REPLAYED, "secure sum 3", lambda: client.keys(cohort.invitation()))


def test_a_round_cannot_be_begun_anew_while_it_goes_on() -> None:
    cohort = Cohort(5)
    cohort.until_masked()
    refused(RefusalKind.REPLAYED, "begun it before", lambda: cohort.client(ME).keys(cohort.invitation()))


def test_a_graph_that_does_not_follow_from_the_keys(sparse: Cohort) -> None:
    deliveries = sparse.until_deliveries()
    true = deliveries[ME]
    stranger = next(client for client in sparse.ids if client not in true.sealed and client != ME)
    content = next(iter(true.sealed.values()))
    more = Delivery(SESSION, true.sharing, {**true.sealed, stranger: content})
    fewer = Delivery(SESSION, true.sharing, dict(list(true.sealed.items())[1:]))
    vector = sparse.vectors[ME]
    for wrong in (more, fewer):
        refused(RefusalKind.GRAPH, "do not agree", lambda w=wrong: sparse.client(ME).mask(w, vector, 32))
    near = set(true.sealed)
    assert 0 < len(near) < 20
    without = tuple(client for client in true.sharing if client not in list(near)[:15])
    alone = Delivery(SESSION, without, {c: s for c, s in true.sealed.items() if c in without})
    refused(RefusalKind.COHORT, "left", lambda: sparse.client(ME).mask(alone, vector, 32))


def test_a_gap_around_one_client_in_the_ring(sparse: Cohort) -> None:
    """The whole cohort is large enough, but who is left is not held together by the graph."""
    sparse.until_masked()
    ring = sparse.server._ring
    assert ring.plan.reach is not None
    gap = ring.order[: ring.plan.reach]
    assert len(gap) <= sparse.size - ring.plan.least  # so many may be missing, but not all in a row
    left = tuple(client for client in sparse.ids if client not in gap)
    asked = Survivors(SESSION, left)
    refused(RefusalKind.COHORT, "in a row of the graph are left", lambda: sparse.client(left[0]).agree(asked))


def test_shares_that_were_meant_for_others_or_altered() -> None:
    cohort = Cohort(5)
    deliveries = cohort.until_deliveries()
    true, vector = deliveries[ME], cohort.vectors[ME]
    crossed = {**true.sealed, 11: deliveries[12].sealed[11]}
    altered = {**true.sealed, 11: true.sealed[11][:-1] + bytes([true.sealed[11][-1] ^ 1])}
    for wrong in (crossed, altered, {**true.sealed, 11: b""}):
        request = Delivery(SESSION, true.sharing, wrong)
        refused(RefusalKind.SHARES, "client 11: its shares", lambda r=request: cohort.client(ME).mask(r, vector, 32))


def test_other_survivors_for_other_clients() -> None:
    """Two lists cannot both be agreed on: each client signs one, and a quorum is more than half."""
    cohort = Cohort(5)
    cohort.until_masked()
    everyone, fewer = Survivors(SESSION, tuple(cohort.ids)), Survivors(SESSION, (10, 11, 12))
    signatures = {c: cohort.client(c).agree(everyone).signature for c in (13, 14)}
    signatures |= {c: cohort.client(c).agree(fewer).signature for c in (10, 11, 12)}
    refused(RefusalKind.OUT_OF_TURN, "'agreed'", lambda: cohort.client(13).agree(fewer))

    split = Unmasking(SESSION, everyone.survivors, (), signatures)
    refused(RefusalKind.SIGNATURE, "client 10: it has not agreed", lambda: cohort.client(13).unmask(split))
    alone = Unmasking(SESSION, everyone.survivors, (), {c: signatures[c] for c in (13, 14)})
    refused(RefusalKind.SURVIVORS, "2 clients agree on the survivors, 3 are", lambda: cohort.client(13).unmask(alone))
    repeated = Unmasking(SESSION, everyone.survivors, (), dict.fromkeys((12, 13, 14), signatures[13]))
    refused(RefusalKind.SIGNATURE, "client 12", lambda: cohort.client(13).unmask(repeated))


def test_another_question_to_one_client() -> None:
    """A model from which all others have nothing to learn would leave one client's update alone in the sum."""
    cohort = Cohort(5)
    deliveries = cohort.until_deliveries()
    for client, request in deliveries.items():
        asked = b"another model" if client == 13 else b"the model"
        cohort.server.add(cohort.client(client).mask(request, cohort.vectors[client], 32, asked))
    survivors = cohort.server.survivors()
    signatures = {client: cohort.client(client).agree(survivors).signature for client in cohort.ids}
    request = Unmasking(SESSION, survivors.survivors, (), signatures)
    refused(RefusalKind.SIGNATURE, "13: .* was asked something else", lambda: cohort.client(ME).unmask(request))
    refused(RefusalKind.SIGNATURE, "10: it has not agreed", lambda: cohort.client(13).unmask(request))


def test_survivors_that_leave_too_few() -> None:
    cohort = Cohort(5)
    cohort.until_masked()
    for left in ((10,), (10, 11)):
        request = Survivors(SESSION, left)
        refused(RefusalKind.COHORT, f"{len(left)} of 5 clients", lambda r=request: cohort.client(ME).agree(r))
    strangers = Survivors(SESSION, (10, 11, 12, 99))
    refused(RefusalKind.SURVIVORS, "no member", lambda: cohort.client(ME).agree(strangers))
    refused(RefusalKind.SURVIVORS, "this one among", lambda: cohort.client(ME).agree(Survivors(SESSION, (11, 12, 13))))


def test_the_sum_of_all_is_unmasked_by_a_quorum_alone() -> None:
    cohort = Cohort(5)
    cohort.until_masked()
    true = cohort.server.unmasking_of_all()
    assert true is not None and len(true.signatures) == 3
    alone = replace(true, signatures=dict(list(true.signatures.items())[:2]))
    refused(RefusalKind.SURVIVORS, "2 clients agree .*, 3 are needed", lambda: cohort.client(ME).unmask(alone))
    forged = replace(true, signatures={**true.signatures, 11: true.signatures[12]})
    refused(RefusalKind.SIGNATURE, "client 11", lambda: cohort.client(ME).unmask(forged))
    fewer = replace(true, survivors=(10, 11, 12, 13), dropped=(14,))
    refused(RefusalKind.SURVIVORS, "others than this client has agreed to", lambda: cohort.client(ME).unmask(fewer))


def test_a_sum_cannot_be_unmasked_with_a_client_and_without_it() -> None:
    """Everyone has agreed to the sum of all. The server has that unmasked by some, and a sum without 14 by the others.

    The three who sign the shorter list are as few as may be. Both secrets of 14 would lay its vector open.
    """
    cohort = Cohort(5)
    cohort.until_masked()
    everyone, without = cohort.server.unmasking_of_all(), Survivors(SESSION, (10, 11, 12, 13))
    assert everyone is not None
    signatures = {client: cohort.client(client).agree(without).signature for client in (10, 11, 12)}
    shorter = Unmasking(SESSION, without.survivors, (14,), signatures)
    for client in (10, 11, 12):
        refused(RefusalKind.SURVIVORS, "agreed to", lambda c=client: cohort.client(c).unmask(everyone))
    revealed = [cohort.client(client).unmask(shorter) for client in (10, 11, 12)]
    revealed += [cohort.client(client).unmask(everyone) for client in (13, 14)]
    refused(RefusalKind.UNMASKED, "already", lambda: cohort.client(13).unmask(shorter))
    threshold = cohort.server._ring.plan.threshold
    assert sum(14 in each.keys for each in revealed) == threshold == 3
    assert sum(14 in each.seeds for each in revealed) == 2  # its own share among them: one too few


@given(st.integers(4, 400), st.floats(0, 0.49), st.floats(0.1, 0.49))
def test_both_secrets_of_a_client_take_more_shares_than_there_are(
    members: int, dropouts: float, corrupt: float
) -> None:
    """Each honest client gives a share of the one or of the other, and those in league with the server give both."""
    with contextlib.suppress(FedMoEError):  # terms that cannot be kept
        found = plan(members, Terms(3, dropouts, corrupt))
        if found.reach is None:
            assert 2 * found.threshold > members + floor(corrupt * members)


def test_a_sparse_graph_is_not_unmasked_before_survivors_are_agreed_on(sparse: Cohort) -> None:
    sparse.until_masked()
    assert sparse.server.unmasking_of_all() is None
    everyone = Unmasking(SESSION, tuple(sparse.ids), (), {})
    refused(RefusalKind.OUT_OF_TURN, "sparse graph", lambda: sparse.client(ME).unmask(everyone))


def test_both_kinds_of_share_of_one_client() -> None:
    cohort = Cohort(5, vanish={"masked": [14]})
    true = cohort.until_unmasking()
    both = replace(true, dropped=(13, 14))
    refused(RefusalKind.BOTH_KINDS, "client 13: both kinds", lambda: cohort.client(ME).unmask(both))
    other = replace(true, survivors=(10, 11, 12), dropped=(13, 14))
    refused(RefusalKind.SURVIVORS, "others than this client has agreed to", lambda: cohort.client(ME).unmask(other))
    revealed = cohort.client(ME).unmask(true)
    assert set(revealed.seeds) == {10, 11, 12, 13}
    assert set(revealed.keys) == {14}


def test_two_unmaskings() -> None:
    cohort = Cohort(5)
    request = cohort.until_unmasking()
    cohort.client(ME).unmask(request)
    refused(RefusalKind.UNMASKED, "already unmasked", lambda: cohort.client(ME).unmask(request))
    refused(RefusalKind.UNMASKED, "already unmasked", lambda: cohort.client(ME).agree(cohort.server.survivors()))
    (left,) = cohort.notebooks[ME].read()["sums"]
    assert set(left) == {"session", "phase"}  # no secret outlives the sum


def test_what_is_asked_twice_or_out_of_turn() -> None:
    cohort = Cohort(5)
    members = cohort.until_members()
    client = cohort.client(ME)
    client.share(members)
    refused(RefusalKind.OUT_OF_TURN, "'shares'", lambda: client.share(members))
    refused(RefusalKind.OUT_OF_TURN, "'shares'", lambda: client.agree(Survivors(SESSION, (10, 11, 12))))
    stranger = Members(Session("7", 4), members.keys)
    refused(RefusalKind.OUT_OF_TURN, "secure sum 4: .* not in it", lambda: client.share(stranger))
    fresh = SecureClient(signer(ME), {ME: line(ME)}, MemoryNotebook())
    refused(RefusalKind.OUT_OF_TURN, "not in it", lambda: fresh.share(members))


def test_a_vector_is_masked_once() -> None:
    """Two vectors under the same masks would give their difference away."""
    cohort = Cohort(5)
    request = cohort.until_deliveries()[ME]
    cohort.client(ME).mask(request, cohort.vectors[ME], 32)
    refused(RefusalKind.OUT_OF_TURN, "'masked'", lambda: cohort.client(ME).mask(request, cohort.vectors[11], 32))


class FullNotebook(MemoryNotebook):
    """A disk that is full from now on."""

    def write(self, notes: dict[str, object]) -> None:
        raise OSError("no space left")


def test_nothing_is_answered_that_could_not_be_written_down() -> None:
    cohort = Cohort(5)
    request = cohort.until_unmasking()
    full = FullNotebook()
    full._notes = cohort.notebooks[ME].read()
    with pytest.raises(OSError):
        SecureClient(signer(ME), admitted(cohort.ids), full).unmask(request)


def test_a_failed_sum_leaves_no_share_with_the_server() -> None:
    """With too few survivors the honest server stops, and one that goes on gets no share."""
    cohort = Cohort(5, vanish={"masked": [12, 13, 14]})
    cohort.until_masked()
    with pytest.raises(TooFewClients, match="2 of 5 clients are left, and 3 are needed"):
        cohort.server.survivors()
    request = Survivors(SESSION, (10, 11))
    for client in (10, 11):
        refused(RefusalKind.COHORT, "2 of 5", lambda c=client: cohort.client(c).agree(request))
        unmasking = Unmasking(SESSION, (10, 11), (12, 13, 14), {})
        refused(RefusalKind.SURVIVORS, "agreed to", lambda c=client, u=unmasking: cohort.client(c).unmask(u))
