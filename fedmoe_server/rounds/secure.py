"""Rounds of real clients whose answers reach the server only as sums: the server's side of ``fedmoe.secure``.

Each exchange with the clients becomes five, one for each phase; the third one carries the model and has the clients
train or evaluate. What comes out is one reply, the sum, as if a host of a simulation had added the answers up.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import FailureKind, FedMoEError
from fedmoe.secure.messages import Agreement, Masked, Revealed, Session, Shares, SignedKeys, Terms
from fedmoe.secure.phases import RECORD
from fedmoe.secure.server import SecureSum
from fedmoe.secure.wire import from_bytes, from_text, question_digest, to_text
from fedmoe.settings import Settings
from fedmoe.sums.total import NAMES
from fedmoe.sums.vectors import Layout, from_vector
from fedmoe.wire import packed_bytes
from fedmoe_server.deploy.deployed import Deployed, admitted_keys
from fedmoe_server.rounds.exchange import exchange, packed
from fedmoe_server.rounds.record import Exchange, Failure
from strategies.layers.replies import COUNTED, METRICS, Valued, record_of
from strategies.sums.layer import ExactSums

ADMITTED = "admitted"  # in the question of the phase of shares: client -> its public key


class SecureRounds:
    """Makes secure sums of the clients' answers to the messages of rounds and evaluations.

    run: an id that no other run has. terms: what each sum promises. keys: returns client -> its admitted public key.
    """

    def __init__(self, run: str, terms: Terms, keys: Callable[[], Mapping[int, str]], sums: ExactSums) -> None:
        self.terms = terms
        self._run = run
        self._keys = keys
        self._sums = sums
        self._number = 0

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
        self._number += 1
        number = str(requests[0].content.config_records["config"]["server-round"])
        session = Session(self._run, self._number, f"{stage} of round {number}")
        talk = _Talk(grid, requests, stage, clients, timeout)
        try:
            total, layout = self._summed(session, talk, packed(requests[:1])[0].content)
            reply = _reply(talk.latest, from_vector(total, layout, self._sums.terms), layout, talk.summed)
            return replace(talk.outcome(), replies=self._sums.mean([reply]))
        except FedMoEError as error:
            return replace(talk.outcome(), problem=str(error))

    def _summed(self, session: Session, talk: _Talk, content: RecordDict) -> tuple[Any, Layout]:
        config, arrays = content.config_records["config"], packed_bytes(content.array_records["arrays"])
        keys, bits = dict(self._keys()), self._sums.terms.ring_bits
        total = SecureSum(session, self.terms, keys, bits, question_digest(arrays, config))
        total.refused = talk.refused
        question = to_text(total.invitation())
        said = talk.ask("keys", {client: {"question": question} for client in talk.nodes})
        members = total.members(talk.read(said, SignedKeys))
        known = {str(each.client): keys[each.client] for each in members.keys}
        asked = {"question": to_text(members), ADMITTED: json.dumps(known)}
        said = talk.ask("shares", {each.client: asked for each in members.keys})
        deliveries = total.deliveries(talk.read(said, Shares))
        questions = {client: {"question": to_text(delivery)} for client, delivery in deliveries.items()}
        layout = None
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
        survivors = total.survivors()
        talk.summed = survivors.survivors
        said = talk.ask("survivors", {client: {"question": to_text(survivors)} for client in talk.summed})
        unmasking = total.unmasking(talk.read(said, Agreement))
        said = talk.ask("unmasking", {client: {"question": to_text(unmasking)} for client in said})
        summed = total.sum(talk.read(said, Revealed))
        assert layout is not None  # there are survivors
        return summed, layout


class _Talk:
    """The messages of one sum: who is asked, who failed and why, and how many bytes travelled.

    nodes: client id -> node id; summed: the clients in the sum; latest: the latest reply that came.
    """

    def __init__(
        self,
        grid: Grid,
        requests: Sequence[Message],
        stage: str,
        clients: Callable[[], Mapping[int, int]],
        timeout: float | None,
    ) -> None:
        known = clients()
        self.nodes = {known[message.metadata.dst_node_id]: message.metadata.dst_node_id for message in requests}
        self.summed: tuple[int, ...] = ()
        self.refused: dict[int, str] = {}
        self.latest: Message
        self._content = {known[message.metadata.dst_node_id]: message.content for message in requests}
        self._kind = requests[0].metadata.message_type
        self._call = grid, stage, clients, timeout
        self._failed: dict[int, Failure] = {}
        self._total = Exchange(len(requests), [])

    def ask(
        self, phase: str, questions: Mapping[int, Mapping[str, str]], with_model: bool = False
    ) -> dict[int, ConfigRecord]:
        """Ask clients for a phase; return client -> the record of its answer."""
        grid, stage, clients, timeout = self._call
        messages = []
        for client, question in questions.items():
            content = dict(self._content[client].items()) if with_model else {}
            content[RECORD] = ConfigRecord(dict(question))
            kind = f"{self._kind}.{phase}"
            messages.append(Message(RecordDict(content), self.nodes[client], kind))
        got = exchange(grid, messages, stage, clients, timeout)
        self._failed |= {
            failure.node: replace(failure, reason=f"{phase}: {failure.reason}") for failure in got.failures
        }
        self._total = replace(
            self._total,
            bytes_down=self._total.bytes_down + got.bytes_down,
            bytes_up=self._total.bytes_up + got.bytes_up,
            dropped=(*self._total.dropped, *got.dropped),
        )
        client_of = {node: client for client, node in self.nodes.items()}
        found = {}
        for reply in got.replies:
            if reply.has_content() and RECORD in reply.content.config_records:
                found[client_of[reply.metadata.src_node_id]] = reply.content.config_records[RECORD]
                self.latest = reply
        return dict(sorted(found.items()))

    def read(self, said: Mapping[int, ConfigRecord], kind: type[Any]) -> list[Any]:
        """Return the answers of a phase; one that is not of its own client is left out."""
        found = []
        for client, record in said.items():
            try:
                answer = from_text(kind, record.get("answer"))
            except FedMoEError as error:
                self.refused[client] = str(error)
                continue
            if answer.client == client:
                found.append(answer)
            else:
                self.refused[client] = f"it answered as client {answer.client}"
        return found

    def outcome(self) -> Exchange:
        """Return what happened, without a reply: who is in the sum has not failed, whatever became of it later."""
        _, stage, _, _ = self._call
        failed = dict(self._failed)
        for client, reason in self.refused.items():
            node = self.nodes[client]
            failed.setdefault(node, Failure(client, node, stage, reason, FailureKind.REFUSED))
        inside = {self.nodes[client] for client in self.summed}
        missing = [failure for node, failure in failed.items() if node not in inside]
        return replace(self._total, failures=tuple(sorted(missing, key=lambda failure: failure.client or 0)))


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
