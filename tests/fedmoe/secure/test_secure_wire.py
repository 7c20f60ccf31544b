"""What is said comes back as it was; what is no message is an error of one line."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import Cohort

from fedmoe.errors import FedMoEError
from fedmoe.secure.messages import Delivery, Invitation, Members, Revealed, Shares, SignedKeys, Survivors, Unmasking
from fedmoe.secure.wire import from_bytes, from_text, question_digest, to_bytes, to_text


def test_every_message_travels_as_text() -> None:
    cohort = Cohort(5, vanish={"masked": [14]})
    unmasking = cohort.until_unmasking()
    deliveries = Cohort(5).until_deliveries()
    said = [
        cohort.invitation(),
        Cohort(5).until_members(),
        Cohort(5).sent_keys()[0],
        Shares(2**61, {3: b"\0\xff"}),
        deliveries[10],
        cohort.server.survivors(),
        unmasking,
        cohort.client(10).unmask(unmasking),
    ]
    kinds = {Invitation, Members, SignedKeys, Shares, Delivery, Survivors, Unmasking, Revealed}
    assert {type(message) for message in said} == kinds
    for message in said:
        assert from_text(type(message), to_text(message)) == message


@pytest.mark.parametrize("text", [None, 7, "", "{}", "[]", "null", '{"client": "x"}', "[" * 100_000])
def test_what_is_no_message_is_one_line(text: object) -> None:
    for kind in (Invitation, Members, SignedKeys, Shares, Delivery, Survivors, Unmasking, Revealed):
        with pytest.raises(FedMoEError, match=f"no message '{kind.__name__}'"):
            from_text(kind, text)


def test_vectors_travel_as_bytes() -> None:
    for bits, word in ((20, np.uint32), (40, np.uint64)):
        words = np.array([0, 1, 2**bits - 1], word)
        found = from_bytes(to_bytes(words), bits)
        assert found.dtype == word
        assert (found == words).all()
    for content in (b"abc", None, "text"):
        with pytest.raises(FedMoEError, match="no masked vector"):
            from_bytes(content, 20)


def test_the_digest_of_a_question_is_of_all_of_it() -> None:
    config = {"server-round": 1, "shared": ["a", "b"], "rate": 0.5}
    one = question_digest("train", b"model", config)
    assert one == question_digest("train", b"model", dict(reversed(config.items())))
    assert one != question_digest("evaluate", b"model", config)
    assert one != question_digest("train", b"other", config)
    assert one != question_digest("train", b"model", config | {"rate": 0.6})
