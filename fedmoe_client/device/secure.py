"""A real client's side of a secure sum (``fedmoe.secure``): each message of the server is one phase of it.

What the client remembers between the phases is a note in its state folder, forced to disk before the answer leaves. The
last two phases may carry the first two of the next sum along. No torch here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedmoe.deployment.keys import read_roster
from fedmoe.errors import FedMoEError, TellableError
from fedmoe.secure.client import SecureClient
from fedmoe.secure.messages import Delivery, Invitation, Members, Session, Survivors, Unmasking
from fedmoe.secure.notes import Notes
from fedmoe.secure.phases import AHEAD, NEXT, PART, RECORD, ROWS_FIRST, SMALLEST, UNION
from fedmoe.secure.primitives import Signer, word_type
from fedmoe.secure.wire import from_text, question_digest, to_bytes, to_text, union_digest
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import NAMES, Union
from fedmoe.sums.vectors import Layout, checked_union, layout_of, to_counts, to_values, to_vector
from fedmoe.wire import NamedArrays, packed_bytes, unpack
from fedmoe_client.device.node import Node, node_from
from fedmoe_client.store.folder import State, StateFolder

ADMITTED = "admitted"  # note: client id -> its public key, as the server told it at first
Answer = tuple[NamedArrays | None, dict[str, Any], RecordDict]


def answer_phase(message: Message, context: Context, carried_out: Callable[[], Answer]) -> dict[str, ConfigRecord]:
    """Return the record with the client's answer to one phase.

    carried_out: trains or evaluates as the message asks, and returns the client's own answer, in integers.

    Raises Refusal for what a client does not answer; TellableError if the node cannot take part in secure sums.
    """
    node, phase = node_from(context.node_config), message.metadata.message_type.partition(".")[2]
    if node.state_dir is None or node.key is None:
        raise TellableError("this node has no key or state folder for secure sums: start it with 'fedmoe_client up'")
    store, asked = StateFolder(node.state_dir), dict(message.content.config_records[RECORD])
    if phase == "masked":
        begun, delivery = time.monotonic(), from_text(Delivery, asked["question"])
        with store.lock():
            _client(store, node, asked).ready(delivery.session)
        answered = None if UNION in asked else _answered(message, carried_out(), asked)
        if answered is not None:  # how long it took tells how long the history is
            time.sleep(to_next_step(time.monotonic() - begun, node.answer_after))
        with store.lock():
            if answered is None:
                answered = _kept(store, delivery.session, asked[UNION])
            elif asked.get(PART) == ROWS_FIRST:
                answered.keep(store, delivery.session)
            client = _client(store, node, asked)
            said = answered.masked(client, delivery)
            if UNION in asked:
                store.drop(_name(delivery.session))
            return {RECORD: ConfigRecord(said | _ahead(client, phase, asked, context))}
    with store.lock():
        client = _client(store, node, asked)
        said = {"answer": _said(client, phase, asked["question"], context)}
        return {RECORD: ConfigRecord(said | _ahead(client, phase, asked, context))}


def to_next_step(passed: float, step: float) -> float:
    """Return the seconds that are left to the next multiple of ``step``; 0: there are no steps."""
    return math.ceil(passed / step) * step - passed if step else 0.0


def _ahead(client: SecureClient, phase: str, asked: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Return the answer to what belongs to the next sum, if it can be given."""
    if phase in AHEAD and NEXT in asked:
        with suppress(FedMoEError):  # the sum that goes on is not harmed; the next one asks again
            return {NEXT: _said(client, AHEAD[phase], asked[NEXT], context)}
    return {}


def _said(client: SecureClient, phase: str, question: Any, context: Context) -> str:
    """Return the answer to a phase in which nothing is masked, as text."""
    if phase == "keys":
        invitation = from_text(Invitation, question)
        _refuse_other_run(invitation.session, str(context.run_id))
        return to_text(client.keys(invitation))
    if phase == "shares":
        return to_text(client.share(from_text(Members, question)))
    if phase == "survivors":
        return to_text(client.agree(from_text(Survivors, question)))
    return to_text(client.unmask(from_text(Unmasking, question)))


@dataclass(frozen=True)
class _Answered:
    """A client's answer in integers, of which a vector is to be masked.

    asked: digest of what was asked; union: the rows of each table that are added up, in the second of two sums; None:
    all of it is added up, or, with ``counts``, the rows that the client touched are counted.
    """

    arrays: NamedArrays
    layout: Layout
    terms: Terms
    asked: bytes
    counts: bool = False
    union: Union | None = None

    def masked(self, client: SecureClient, delivery: Delivery) -> dict[str, Any]:
        """Return the vector under masks, what its entries are, and the agreement to the sum of all."""
        bits = self.terms.count_bits if self.counts else self.terms.ring_bits
        if self.counts:
            vector = to_counts(self.arrays, self.layout, self.terms)
        elif self.union is None:
            vector = to_vector(self.arrays, self.layout, self.terms)
        else:
            vector = to_values(self.arrays, self.layout, self.terms, self.union)
        masked = client.mask(delivery, vector.astype(word_type(bits)), bits, self.asked)
        agreed = {"agreed": masked.signature} if masked.signature else {}
        return {"words": to_bytes(masked.words), "layout": json.dumps(self.layout.to_json()), **agreed}

    def keep(self, store: StateFolder, session: Session) -> None:
        """Keep the answer for the second sum: the client is not trained again."""
        about = {"layout": self.layout.to_json(), "terms": self.terms.to_config(), "asked": self.asked.hex()}
        store.save(_name(session), State(self.arrays, about))


def _answered(message: Message, answer: Answer, asked: Mapping[str, Any]) -> _Answered:
    """Return what a message had the client do, as what is added up."""
    arrays, _, records = answer
    if arrays is None or NAMES not in records:
        raise FedMoEError("the answer is not in integers, which alone are added up under masks")
    config, packed = message.content.config_records["config"], packed_bytes(message.content.array_records["arrays"])
    metrics, added = (json.loads(str(records.config_records[NAMES][key])) for key in ("metrics", "arrays"))
    shapes = {name: array.shape for name, array in unpack(packed).items() if name in added}
    kind, part = message.metadata.message_type.partition(".")[0], str(asked.get(PART, ""))
    digest = question_digest(kind + part, packed, config)
    layout, terms = layout_of(arrays, metrics, shapes), Terms.of_config(config)
    return _Answered(arrays, layout, terms, digest, counts=part == ROWS_FIRST)


def _kept(store: StateFolder, session: Session, union: Any) -> _Answered:
    """Return the run's answer whose rows were counted before, to be added up at the rows of the union (packed)."""
    state = store.load(_name(session))
    if state is None:
        raise FedMoEError("the client has no answer whose rows were counted")
    layout, terms = Layout.of_json(state.about["layout"]), Terms.of_config(state.about["terms"])
    digest = union_digest(bytes.fromhex(state.about["asked"]), union)
    return _Answered(state.arrays, layout, terms, digest, union=checked_union(unpack(union), layout))


def _name(session: Session) -> str:
    """Return the name of the state with a run's answer, from the sum of its rows to that of the rest."""
    return f"summing-{session.run}"


class _NoteBook:
    """The notes of secure sums in a client's state folder."""

    def __init__(self, store: StateFolder) -> None:
        self._store = store

    def read(self) -> Notes:
        return self._store.note(RECORD)

    def write(self, notes: Notes) -> None:
        self._store.keep_note(RECORD, notes)


def _client(store: StateFolder, node: Node, asked: Mapping[str, Any]) -> SecureClient:
    assert node.key is not None
    signer = Signer.from_file(store.number(node.number), node.key)
    admitted = _known(store, asked) if node.roster is None else read_roster(node.roster)
    return SecureClient(signer, admitted, _NoteBook(store), max(node.smallest, SMALLEST))


def _known(store: StateFolder, asked: Mapping[str, Any]) -> dict[int, str]:
    """Return client -> public key as the server has told it at first: it cannot tell another one later."""
    told = json.loads(str(asked.get(ADMITTED, "{}")))
    known = {**told, **store.note(ADMITTED)}
    store.keep_note(ADMITTED, known)
    return {int(client): str(line) for client, line in known.items()}


def _refuse_other_run(session: Session, run: str) -> None:
    if session.run != run:
        raise TellableError(f"the secure sum is of run {session.run}, and this is run {run}")
