"""Rounds of real clients whose answers reach the server only as sums: the server's side of ``fedmoe.secure``.

Each exchange with the clients becomes up to five, one for each phase; the phase of masked vectors carries the model and
has the clients train or evaluate. What comes out is one reply, the sum,
as if a host of a simulation had added the answers up.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import FedMoEError
from fedmoe.secure.messages import Agreement, Masked, Revealed, Session, Shares, SignedKeys, Terms
from fedmoe.secure.server import SecureSum
from fedmoe.secure.wire import from_bytes, to_text
from fedmoe.settings import Settings
from fedmoe.sums.terms import Ring
from fedmoe.sums.total import NAMES, Shapes
from fedmoe.sums.vectors import Layout, from_sums, from_vector
from fedmoe.wire import NamedArrays
from fedmoe_server.deploy.deployed import Deployed, admitted_keys
from fedmoe_server.rounds.ahead import Ahead, Shared, admitted
from fedmoe_server.rounds.exchange import packed
from fedmoe_server.rounds.parts import Asked, Part, layout_in, sparing, union_of
from fedmoe_server.rounds.record import Exchange
from fedmoe_server.rounds.talk import Talk
from strategies.layers.replies import COUNTED, METRICS, Valued, record_of
from strategies.sums.layer import ExactSums


class SecureRounds:
    """Makes secure sums of the clients' answers to the messages of rounds and evaluations.

    run: an id that no other run has. terms: what each sum promises. keys: returns client -> its admitted public key.
    rows_first: see ``privacy.rows_first``.

    Where the same clients are asked once more, as in a federation in which everybody takes part, the next sum's keys
    and shares travel with the phases of the one before. An exchange from which nobody vanishes then takes two messages:
    the one with the model, and the unmasking.

    Where few rows of large tables are touched, training takes two sums of the same clients: the touched rows are
    counted, then the answers are added up at those rows alone.
    """

    def __init__(
        self,
        run: str,
        terms: Terms,
        keys: Callable[[], Mapping[int, str]],
        sums: ExactSums,
        rows_first: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        self.terms = terms
        self._run = run
        self._keys = keys
        self._sums = sums
        self._rows_first = rows_first
        self._worth = False  # whether counting first would have spared bytes in the training before
        self._number = 0
        self._asked: Collection[int] | None = None  # the clients of the exchange before
        self._prepared: Shared | None = None

    def exchange(
        self,
        grid: Grid,
        messages: Iterable[Message],
        stage: str,
        clients: Callable[[], Mapping[int, int]],
        timeout: float | None,
    ) -> Exchange:
        """Return the mean of the clients' answers as one reply; with a problem and no reply where there is no sum.

        clients: returns node id -> client id; timeout: seconds for each phase.
        """
        requests = list(messages)
        if not requests:
            return Exchange(0, [])
        talk = Talk(grid, requests, stage, clients, timeout)
        again = self._asked in (None, set(talk.nodes))
        self._asked = set(talk.nodes)
        try:
            keys = dict(self._keys())
            shared = self._prepared_for(talk, keys) or self._begun(talk, keys, talk.nodes)
            arrays, layout = self._added(shared, talk, packed(requests[:1])[0].content, keys, again)
            reply = _reply(talk.latest, arrays, layout, talk.summed)
            return replace(talk.outcome(), replies=self._sums.mean([reply]))
        except FedMoEError as error:
            number = str(requests[0].content.config_records["config"]["server-round"])
            return replace(talk.outcome(), problem=f"{stage} of round {number}: {error}")

    def _added(
        self, shared: Shared, talk: Talk, content: RecordDict, keys: Mapping[int, str], again: bool
    ) -> tuple[NamedArrays, Layout]:
        """Return the sum of the clients' answers as it travels. again: prepare the next exchange's sum meanwhile."""
        terms = self._sums.terms
        asked = Asked(talk.kind, content, terms)
        if not self._counts_rows():
            vector, layout = self._summed(shared, talk, asked.whole(), keys if again else None)
            arrays = from_vector(vector, layout, terms)
        else:
            rows = asked.rows()
            counts, layout = self._summed(shared, talk, rows, keys)
            union = union_of(counts, layout)
            shared, self._prepared = self._prepared or self._begun(talk, keys, talk.summed), None
            part = asked.values(rows, union)
            values, layout = self._summed(shared, talk, part, keys if again else None, layout)
            arrays = from_sums(values, counts, union, layout, terms)
        if layout.tables:
            self._worth = sparing(arrays, layout, terms)
        return arrays, layout

    def _counts_rows(self) -> bool:
        """Whether the rows are counted first, in training alone."""
        wanted = self._rows_first == "on" or (self._rows_first == "auto" and self._worth)
        return wanted and bool(self._sums.shapes)

    def _next(self, keys: Mapping[int, str]) -> SecureSum:
        self._number += 1
        return SecureSum(Session(self._run, self._number), self.terms, keys)

    def _prepared_for(self, talk: Talk, keys: Mapping[int, str]) -> Shared | None:
        """Return the prepared sum if its members are those who are asked, and nobody's admitted key has changed."""
        shared, self._prepared = self._prepared, None
        fits = shared is not None and set(shared.deliveries) == set(talk.nodes) and shared.total.admitted == keys
        return shared if fits else None

    def _begun(self, talk: Talk, keys: Mapping[int, str], clients: Iterable[int]) -> Shared:
        """Go through the first two phases of a sum."""
        total = self._next(keys)
        total.refused = talk.refused
        question = to_text(total.invitation())
        said = talk.ask("keys", {client: {"question": question} for client in clients})
        members = total.members(talk.read(said, SignedKeys))
        asked = {"question": to_text(members), **admitted(total, members)}
        said = talk.ask("shares", {each.client: asked for each in members.keys})
        return Shared(total, total.deliveries(talk.read(said, Shares)))

    def _summed(
        self,
        shared: Shared,
        talk: Talk,
        part: Part,
        keys: Mapping[int, str] | None,
        layout: Layout | None = None,
    ) -> tuple[Ring, Layout]:
        """Go through the last three phases; meanwhile the following sum, if any, goes through its first two.

        keys: of the following sum; None: none follows. layout: which the vectors must have; None: that of the first.
        """
        total, ahead = shared.total, Ahead(None if keys is None else self._next(keys))
        total.refused = talk.refused
        total.expect(part.bits, part.asked)
        more = {**part.words, **ahead.invitation()}
        questions = {client: {"question": to_text(each), **more} for client, each in shared.deliveries.items()}
        said = talk.ask("masked", questions, part.with_model)
        layout = _add(total, said, part.bits, self._sums.shapes, layout)
        survivors = total.survivors()
        talk.summed = survivors.survivors
        left, members = talk.summed, ahead.members(said)
        unmasking = total.unmasking_of_all()
        if unmasking is None:
            said = talk.ask("survivors", dict.fromkeys(talk.summed, {"question": to_text(survivors)}))
            left, unmasking = tuple(said), total.unmasking(talk.read(said, Agreement))
        said = talk.ask("unmasking", dict.fromkeys(left, {"question": to_text(unmasking), **members}))
        summed = total.sum(talk.read(said, Revealed))
        self._prepared = ahead.shared(said)
        assert layout is not None  # there are survivors
        return summed.astype(self._sums.terms.dtype), layout


def _add(
    total: SecureSum, said: Mapping[int, ConfigRecord], bits: int, shapes: Shapes, layout: Layout | None
) -> Layout | None:
    """Add up the masked vectors that have a layout, or that of most of them, and return it; None: none came."""
    found = {}
    for client, record in said.items():
        try:
            found[client] = layout_in(record, shapes), from_bytes(record.get("words"), bits), record.get("agreed")
        except FedMoEError as error:
            total.refused[client] = str(error)
    if found and layout is None:
        told = Counter(json.dumps(each.to_json()) for each, *_ in found.values())
        layout = Layout.of_json(json.loads(told.most_common(1)[0][0]))
    for client, (own, words, agreed) in found.items():
        if own == layout:
            total.add(Masked(client, words, agreed if isinstance(agreed, bytes) else b""))
        else:
            total.refused[client] = "a vector of other metrics or tables than the others'"
    return layout


def _reply(latest: Message, arrays: Mapping[str, Any], layout: Layout, clients: Sequence[int]) -> Message:
    """Return the sum as a reply that stands for its clients."""
    counts = MetricRecord({COUNTED[0]: len(clients)})
    names = ConfigRecord({"metrics": json.dumps(layout.metrics), "arrays": json.dumps(list(layout.shapes))})
    values = record_of({name: Valued(array) for name, array in arrays.items()})
    reply = copy.copy(latest)
    reply.content = RecordDict({NAMES: names, "arrays": values, METRICS: counts})
    return reply


def secure_rounds(settings: Settings, deployed: Deployed | None, sums: ExactSums | None) -> SecureRounds | None:
    """Return what sums the clients' answers securely; None where they are simulated, or it is not wanted.

    Raises FedMoEError if it is wanted and cannot be had.
    """
    privacy = settings.privacy
    if deployed is None or privacy.secure_aggregation == "off":
        return None
    if sums is None:
        if privacy.secure_aggregation == "auto":
            return None
        raise FedMoEError("privacy.secure_aggregation adds integers up: set privacy.sum_bits, such as to 20")
    if deployed.clients is None:
        if privacy.secure_aggregation == "auto":
            return None
        raise FedMoEError(
            "privacy.secure_aggregation: this run does not know which clients were admitted, and with which keys: "
            "start it with 'python -m fedmoe_server run'"
        )
    terms = Terms(privacy.smallest_cohort, privacy.dropouts, privacy.corrupt)
    keys = partial(admitted_keys, deployed.clients)
    return SecureRounds(deployed.run, terms, keys, sums, privacy.rows_first)
