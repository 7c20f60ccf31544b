"""Rounds of real clients whose answers reach the server only as sums: the server's side of ``fedmoe.secure``.

Each exchange with the clients becomes five, one for each phase, or three where the first two were had before; the
phase of masked vectors carries the model and has the clients train or evaluate. What comes out is one reply, the sum,
as if a host of a simulation had added the answers up.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import FedMoEError
from fedmoe.secure.messages import Agreement, Delivery, Masked, Members, Revealed, Session, Shares, SignedKeys, Terms
from fedmoe.secure.phases import NEXT
from fedmoe.secure.server import SecureSum
from fedmoe.secure.wire import from_bytes, from_text, question_digest, to_text
from fedmoe.settings import Settings
from fedmoe.sums.total import NAMES
from fedmoe.sums.vectors import Layout, from_vector
from fedmoe.wire import packed_bytes
from fedmoe_server.deploy.deployed import Deployed, admitted_keys
from fedmoe_server.rounds.exchange import packed
from fedmoe_server.rounds.record import Exchange
from fedmoe_server.rounds.talk import Talk
from strategies.layers.replies import COUNTED, METRICS, Valued, record_of
from strategies.sums.layer import ExactSums

ADMITTED = "admitted"  # in the question of the phase of shares: client -> its public key


@dataclass(frozen=True)
class Shared:
    """A sum whose members have shared their secrets, and which waits for their vectors.

    deliveries: client -> the question of the phase of masked vectors.
    """

    total: SecureSum
    deliveries: Mapping[int, Delivery]


class SecureRounds:
    """Makes secure sums of the clients' answers to the messages of rounds and evaluations.

    run: an id that no other run has. terms: what each sum promises. keys: returns client -> its admitted public key.

    Where the same clients are asked once more, as in a federation in which everybody takes part, the next sum's keys
    and shares travel with the last two phases of the one before: an exchange then takes three messages, not five.
    """

    def __init__(self, run: str, terms: Terms, keys: Callable[[], Mapping[int, str]], sums: ExactSums) -> None:
        self.terms = terms
        self._run = run
        self._keys = keys
        self._sums = sums
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
            shared = self._prepared_for(talk, keys) or self._begun(talk, keys)
            shared.total.refused = talk.refused
            following = self._next(keys) if again else None
            total, layout = self._summed(shared, talk, packed(requests[:1])[0].content, following)
            reply = _reply(talk.latest, from_vector(total, layout, self._sums.terms), layout, talk.summed)
            return replace(talk.outcome(), replies=self._sums.mean([reply]))
        except FedMoEError as error:
            number = str(requests[0].content.config_records["config"]["server-round"])
            return replace(talk.outcome(), problem=f"{stage} of round {number}: {error}")

    def _next(self, keys: Mapping[int, str]) -> SecureSum:
        self._number += 1
        return SecureSum(Session(self._run, self._number), self.terms, keys, self._sums.terms.ring_bits)

    def _prepared_for(self, talk: Talk, keys: Mapping[int, str]) -> Shared | None:
        """Return the prepared sum if its members are those who are asked, and nobody's admitted key has changed."""
        shared, self._prepared = self._prepared, None
        fits = shared is not None and set(shared.deliveries) == set(talk.nodes) and shared.total.admitted == keys
        return shared if fits else None

    def _begun(self, talk: Talk, keys: Mapping[int, str]) -> Shared:
        """Go through the first two phases of a sum."""
        total = self._next(keys)
        total.refused = talk.refused
        question = to_text(total.invitation())
        said = talk.ask("keys", {client: {"question": question} for client in talk.nodes})
        members = total.members(talk.read(said, SignedKeys))
        asked = {"question": to_text(members), **_admitted(total, members)}
        said = talk.ask("shares", {each.client: asked for each in members.keys})
        return Shared(total, total.deliveries(talk.read(said, Shares)))

    def _summed(
        self, shared: Shared, talk: Talk, content: RecordDict, following: SecureSum | None
    ) -> tuple[Any, Layout]:
        """Go through the last three phases; meanwhile the following sum, if any, goes through its first two."""
        total, layout = shared.total, self._added(shared, talk)
        config, arrays = content.config_records["config"], packed_bytes(content.array_records["arrays"])
        survivors = total.survivors()
        talk.summed = survivors.survivors
        ahead = Ahead(following)
        question = {"question": to_text(survivors), **ahead.invitation()}
        said = talk.ask("survivors", dict.fromkeys(talk.summed, question))
        unmasking = total.unmasking(talk.read(said, Agreement), question_digest(talk.kind, arrays, config))
        question = {"question": to_text(unmasking), **ahead.members(said)}
        said = talk.ask("unmasking", dict.fromkeys(said, question))
        summed = total.sum(talk.read(said, Revealed))
        self._prepared = ahead.shared(said)
        assert layout is not None  # there are survivors
        return summed, layout

    def _added(self, shared: Shared, talk: Talk) -> Layout | None:
        """Have the clients answer, add their masked vectors up, and return what the entries are."""
        total, bits, layout = shared.total, self._sums.terms.ring_bits, None
        questions = {client: {"question": to_text(delivery)} for client, delivery in shared.deliveries.items()}
        for client, record in talk.ask("masked", questions, with_model=True).items():
            try:
                found, words = _layout(record, self._sums.shapes), from_bytes(record.get("words"), bits)
            except FedMoEError as error:
                total.refused[client] = str(error)
                continue
            layout = layout or found
            if found == layout:
                total.add(Masked(client, words))
            else:
                total.refused[client] = "a vector of other metrics or tables than the others'"
        return layout


class Ahead:
    """The first two phases of the next sum, which travel along; what fails here leaves the next sum to begin anew.

    total: the next sum; None: nothing travels along.
    """

    def __init__(self, total: SecureSum | None) -> None:
        self._total = total

    def invitation(self) -> dict[str, str]:
        """Return what is added to a message: the question of the phase of keys."""
        return {} if self._total is None else {NEXT: to_text(self._total.invitation())}

    def members(self, said: Mapping[int, ConfigRecord]) -> dict[str, str]:
        """Take the keys that came, and return what is added to a message: the question of the phase of shares."""
        try:
            if self._total is None:
                return {}
            members = self._total.members(_answers(said, SignedKeys))
            return {NEXT: to_text(members), **_admitted(self._total, members)}
        except FedMoEError:
            self._total = None
            return {}

    def shared(self, said: Mapping[int, ConfigRecord]) -> Shared | None:
        """Take the shares that came, and return the sum; None if it must begin anew."""
        try:
            if self._total is not None:
                return Shared(self._total, self._total.deliveries(_answers(said, Shares)))
        except FedMoEError:
            pass
        return None


def _answers(said: Mapping[int, ConfigRecord], kind: type[Any]) -> list[Any]:
    """Return the answers that travelled along, each of its own client."""
    found = [(client, from_text(kind, record[NEXT])) for client, record in said.items() if NEXT in record]
    return [answer for client, answer in found if answer.client == client]


def _admitted(total: SecureSum, members: Members) -> dict[str, str]:
    """Return what tells clients the members' admitted keys."""
    return {ADMITTED: json.dumps({str(each.client): total.admitted[each.client] for each in members.keys})}


def _layout(record: ConfigRecord, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """Return what the entries of a client's vector are. FedMoEError: they are not those that were asked for."""
    try:
        found = json.loads(str(record["layout"]))
        layout = Layout(
            {str(name): tuple(shape) for name, *shape in found["shapes"]},
            tuple(map(str, found["tables"])),
            tuple(map(str, found["metrics"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FedMoEError("the masked vector does not say what it holds") from error
    if list(layout.shapes.items()) != list(shapes.items()) or not set(layout.tables) <= set(shapes):
        raise FedMoEError("the masked vector is of other parameters than those that were asked for")
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
    return SecureRounds(deployed.run, terms, partial(admitted_keys, deployed.clients), sums)
