"""The client of a silo: one node with the histories of many users, each of whom has private parameters of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.common import NDArrays, Scalar

from fedmoe_client.learning.client import FedMoEClient
from fedmoe_client.learning.own_client import TABLE, Parameters
from fedmoe_client.learning.training import load
from fedmoe_client.store.private import NamedArrays, of_user, user_name


class Silo(FedMoEClient):
    """Trains on one user after the other: what is shared goes on from user to user, what is private is each user's own.

    A private item table is the exception, since it is as large as all of the rest: the users of a silo share it. So do
    they all of the private part where a client of one's own trains (``training.client``). A user who is new starts from
    the server's values; one whose history is too short for a while keeps what it had.
    """

    def _start(self, parameters: Any, config: Mapping[str, Any]) -> tuple[NamedArrays, NamedArrays, list[str]]:
        """Do what a client does, and remember what each user starts from."""
        server, own, shared = super()._start(parameters, config)
        self._names = [name for name in self.workbench.names if name not in set(shared) and name != TABLE]
        self._first = server | own
        return server, own, shared

    def load_own(self, shared: Collection[str]) -> NamedArrays:
        """Return what is the silo's own, and remember what is each user's."""
        self._found = self.private.load()
        return super().load_own(shared)

    def _ordered_users(self, config: Mapping[str, Any]) -> list[int]:
        self._order = super()._ordered_users(config)
        return self._order

    @contextmanager
    def _turn_of(self, place: int, used: Parameters) -> Iterator[None]:
        """Put a user's own values into the parameters while it trains, and keep what becomes of them."""
        user = self._order[place]
        load(used, self._values(user))
        yield
        for name in self._names:
            self._found[user_name(user, name)] = used[name].detach().cpu().numpy().copy()

    def keep(self, own: NamedArrays) -> None:
        """Keep the users' private parameters; own: with what the latest user's have become."""
        self.private.save(
            {name: array for name, array in own.items() if name == TABLE}
            | {name: array for name, array in self._found.items() if name not in self.workbench.shapes}
        )

    def evaluate(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[float, int, dict[str, Scalar]]:
        """Do what a client does; the own figures are means over the users, each with its own private parameters."""
        loss, count, metrics = super().evaluate(parameters, config)
        if not self._knows_users():
            return loss, count, metrics
        bench, found = self.workbench, []
        bench.load(self._first)
        for user in self.users:
            values = self._values(user)
            bench.load(values)
            found.append(bench.measured(self._first | values, self.histories, [user], str(config["split"])))
        personal = {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}
        return 1.0 - personal["ndcg@10"], count, {**metrics, **personal}

    def own_of(self, user: int) -> NamedArrays:
        """Return the user's own values, where there are any."""
        return self._values(user) if self._knows_users() else {}

    def _knows_users(self) -> bool:
        """Whether anything is private, and there is a user who has trained it."""
        return bool(self._names) and any(of_user(self._found, user) for user in self.users)

    def _values(self, user: int) -> NamedArrays:
        """Return a user's value of each parameter that is private."""
        return {name: self._first[name] for name in self._names} | {
            name: array for name, array in of_user(self._found, user).items() if name in self._names
        }
