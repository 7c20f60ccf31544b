"""The messages of one secure sum: who is asked, who failed and why, and how many bytes travelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmoe.errors import FailureKind, FedMoEError
from fedmoe.secure.phases import RECORD
from fedmoe.secure.wire import from_text
from fedmoe_server.rounds.exchange import exchange
from fedmoe_server.rounds.record import Exchange, Failure


class Talk:
    """The messages of one sum: who is asked, who failed and why, and how many bytes travelled.

    nodes: client id -> node id; kind: of the messages, such as ``train``; summed: the clients in the sum; latest: the
    latest reply that came.
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
        self.kind = requests[0].metadata.message_type
        self._call = grid, stage, clients, timeout
        self._failed: dict[int, Failure] = {}
        self._total = Exchange(len(requests), [])

    def ask(
        self, phase: str, questions: Mapping[int, Mapping[str, Any]], with_model: bool = False
    ) -> dict[int, ConfigRecord]:
        """Ask clients for a phase; return client -> the record of its answer."""
        grid, stage, clients, timeout = self._call
        messages = []
        for client, question in questions.items():
            content = dict(self._content[client].items()) if with_model else {}
            content[RECORD] = ConfigRecord(dict(question))
            kind = f"{self.kind}.{phase}"
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
