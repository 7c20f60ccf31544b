"""The sum after the one that goes on: its keys and shares travel with the last two phases of that one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord

from fedmoe.errors import FedMoEError
from fedmoe.secure.messages import Delivery, Members, Shares, SignedKeys
from fedmoe.secure.phases import NEXT
from fedmoe.secure.server import SecureSum
from fedmoe.secure.wire import from_text, to_text

ADMITTED = "admitted"  # in the question of the phase of shares: client -> its public key


@dataclass(frozen=True)
class Shared:
    """A sum whose members have shared their secrets, and which waits for their vectors.

    deliveries: client -> the question of the phase of masked vectors.
    """

    total: SecureSum
    deliveries: Mapping[int, Delivery]


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
            return {NEXT: to_text(members), **admitted(self._total, members)}
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


def admitted(total: SecureSum, members: Members) -> dict[str, str]:
    """Return what tells clients the members' admitted keys."""
    return {ADMITTED: json.dumps({str(each.client): total.admitted[each.client] for each in members.keys})}
