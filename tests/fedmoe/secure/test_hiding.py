"""A masked vector by itself is noise, whatever it hides, and stays noise while one kind of mask is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cohort import SESSION, Cohort

from fedmoe.secure.masks import own_mask, pair_mask
from fedmoe.secure.messages import SignedKeys
from fedmoe.secure.notes import Notes, members_of
from fedmoe.secure.primitives import Words, encoded, largest, stream

ME, LENGTH, BITS = 12, 2**16, 8


def chi_square(words: Words, bits: int = BITS) -> float:
    """Return in standard deviations how far the counts of the values are from uniform ones (0 is what to expect)."""
    counts = np.bincount(words, minlength=2**bits)
    mean, freedom = len(words) / 2**bits, 2**bits - 1
    statistic = float(((counts - mean) ** 2 / mean).sum())
    return (statistic - freedom) / np.sqrt(2 * freedom)


def noted(cohort: Cohort, client: int) -> Notes:
    """Return what a client has noted of the cohort's sum."""
    (found,) = cohort.notebooks[client].read()["sums"]
    return found


def zeros() -> tuple[Cohort, Words]:
    """Return a cohort, and the masked vector of a client that has nothing but zeros."""
    cohort = Cohort(5, bits=BITS, length=LENGTH)
    cohort.vectors[ME] = np.zeros(LENGTH, np.uint8)
    return cohort, cohort.until_masked()[ME]


def test_the_test_sees_what_is_not_uniform() -> None:
    assert chi_square(np.zeros(LENGTH, np.uint32)) > 1000
    draw = np.random.default_rng(0)
    nearly = draw.integers(0, 2**BITS, LENGTH, dtype=np.uint32)
    assert abs(chi_square(nearly)) < 6
    nearly[: LENGTH // 20] = 7  # one in twenty entries shows
    assert chi_square(nearly) > 6


def test_masked_vectors_are_uniform() -> None:
    cohort, masked = zeros()
    assert abs(chi_square(masked)) < 6
    shifted = (masked - np.roll(masked, 1)) & largest(BITS)  # neither does one entry tell of the next one
    assert abs(chi_square(shifted)) < 6


def test_either_kind_of_mask_hides_the_vector_without_the_other() -> None:
    cohort, masked = zeros()
    notes = noted(cohort, ME)
    seed, key = bytes.fromhex(notes["seed"]), bytes.fromhex(notes["masking"])
    without_own = (masked - own_mask(seed, SESSION, LENGTH, BITS)) & largest(BITS)
    assert abs(chi_square(without_own)) < 6
    without_pairs = masked.copy()
    for other in members_of(notes).keys:
        if other.client != ME:
            without_pairs -= pair_mask(key, other.masking, SESSION, ME, other.client, LENGTH, BITS, b"")
    assert abs(chi_square(without_pairs & largest(BITS))) < 6
    neither = (without_pairs - own_mask(seed, SESSION, LENGTH, BITS)) & largest(BITS)
    assert chi_square(neither) > 1000
    assert not neither.any()


def test_the_same_vector_in_two_sums_has_nothing_in_common() -> None:
    difference = (zeros()[1] - zeros()[1]) & largest(BITS)
    assert abs(chi_square(difference)) < 6


@pytest.mark.parametrize("told", [b"the model", b"another model"])
def test_who_was_asked_something_else_is_not_alone_in_the_sum(told: bytes) -> None:
    """The others' updates are zero, by a model made for that, and their signatures are enough: ME's is left out.

    With the model that the others got there is a sum, in which ME is alone: that is the attack. With its own model, as
    a lying server would have it, the sum is noise.
    """
    cohort = Cohort(5, bits=BITS, length=LENGTH)
    cohort.vectors = {client: np.zeros(LENGTH, np.uint8) for client in cohort.ids}
    cohort.vectors[ME] = np.arange(LENGTH, dtype=np.uint8) // 16
    cohort.server.expect(BITS, b"the model")
    for client, request in cohort.until_deliveries().items():
        asked = told if client == ME else b"the model"
        cohort.server.add(cohort.client(client).mask(request, cohort.vectors[client], BITS, asked))
    survivors = cohort.server.survivors()
    others = [client for client in cohort.ids if client != ME]
    unmasking = cohort.server.unmasking([cohort.client(client).agree(survivors) for client in others])
    found = cohort.server.sum([cohort.client(client).unmask(unmasking) for client in others])
    if told == b"the model":
        assert (found == cohort.vectors[ME]).all()
    else:
        assert abs(chi_square(found)) < 6
        assert abs(chi_square((found - cohort.vectors[ME]) & largest(BITS))) < 6


def test_masks_differ_for_each_sum_and_pair_and_have_all_values() -> None:
    cohort = Cohort(5)
    keys: list[SignedKeys] = cohort.sent_keys()
    private = bytes.fromhex(noted(cohort, 10)["masking"])
    one = pair_mask(private, keys[1].masking, SESSION, 10, 11, 100, 32, b"")
    other = pair_mask(bytes.fromhex(noted(cohort, 11)["masking"]), keys[0].masking, SESSION, 11, 10, 100, 32, b"")
    assert not (one + other).any()  # the two of a pair cancel
    for session in (replace(SESSION, number=4), replace(SESSION, run="8")):
        assert not np.isin(pair_mask(private, keys[1].masking, session, 10, 11, 100, 32, b""), one).any()
    assert not np.isin(pair_mask(private, keys[1].masking, SESSION, 10, 12, 100, 32, b""), one).any()
    assert not np.isin(pair_mask(private, keys[1].masking, SESSION, 10, 11, 100, 32, b"asked"), one).any()
    assert set(stream(bytes(32), 4096, 4)) == set(range(16))  # the largest one too


@pytest.mark.parametrize(("bits", "size"), [(1, 1), (8, 1), (9, 2), (16, 2), (31, 4), (32, 4), (33, 8), (64, 8)])
def test_streams_fill_their_ring(bits: int, size: int) -> None:
    drawn = stream(b"k" * 32, 1000, bits)
    assert drawn.dtype == np.dtype(f"u{size}")
    assert drawn.max() <= largest(bits)
    assert drawn.max() > largest(bits) // 2
    with pytest.raises(ValueError, match="1 to 64"):
        stream(b"k" * 32, 1, 65)


def test_a_stream_is_aes_in_counter_mode() -> None:
    # NIST SP 800-38A, F.1.5: AES-256 of the first block, which the counter mode reaches with the same input. The known
    # answer for key 0 and block 0 (FIPS-197 check value) pins the byte order of the words.
    assert stream(bytes(32), 1, 32)[0] == int.from_bytes(bytes.fromhex("dc95c078"), "little")


def test_encodings_can_be_told_apart() -> None:
    pairs = [(("ab", "c"), ("a", "bc")), ((1,), ("1",)), ((b"1",), ("1",)), (("a", ""), ("a",)), ((12, 3), (1, 23))]
    for one, other in pairs:
        assert encoded(*one) != encoded(*other)
