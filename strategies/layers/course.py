"""The course of a run: who takes part in a round, and at which rate the server learns.

Both follow from the settings, the round's number and the ids of the clients that are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, cast
from zlib import crc32

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError
from strategies.layers.layer import Layer, Round, Stateless, chain

RATES = ("eta", "server_learning_rate")  # FedAdam, FedYogi, FedAdagrad; FedAvgM


class ServerLearningRate(Stateless):
    """Set the learning rate of ``strategy`` before each aggregation.

    schedule "constant": the strategy's own rate, untouched. "cosine": in round r = 1, 2, ... the rate is
    base * (1 + cos(pi * (r - 1) / num_rounds)) / 2: the base in the first round, falling to 0 with the end of the last.
    The rate is the attribute ``eta`` or ``server_learning_rate`` of the strategy or of what it wraps.

    Raises FedMoEError for "cosine" and a strategy with no such attribute.
    """

    needs_every_reply = False

    def __init__(self, strategy: Strategy, schedule: Literal["constant", "cosine"], num_rounds: int) -> None:
        super().__init__(strategy)
        self.schedule = schedule
        self.num_rounds = num_rounds
        if schedule == "cosine":
            self._owner, self._attribute = _find_rate(strategy)
            self._base = float(getattr(self._owner, self._attribute))
            if hasattr(self._owner, "server_opt"):
                # FedAvgM ignores its rate if it was built with rate 1 and no momentum.
                self._owner.server_opt = True

    def rate(self, server_round: int) -> float:
        """The cosine's rate in a round, counted from 1."""
        progress = min(server_round - 1, self.num_rounds) / self.num_rounds
        return self._base * (1.0 + math.cos(math.pi * progress)) / 2.0

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        """Return the replies as they are, with the rate of this round set."""
        if self.schedule == "cosine":
            setattr(self._owner, self._attribute, self.rate(sent.number))
        return replies


def _find_rate(strategy: Strategy) -> tuple[Any, str]:
    for part in chain(strategy):
        for attribute in RATES:
            if isinstance(getattr(part, attribute, None), int | float):
                return part, attribute
    raise FedMoEError(
        f"federation.server_schedule: strategy {type(strategy).__name__} has no server learning rate "
        f"({' or '.join(RATES)}); set server_schedule to constant"
    )


def sample_clients(seed: int, purpose: str, server_round: int, client_ids: Iterable[int], size: int) -> list[int]:
    """Return ``size`` of the client ids (all, if there are fewer), uniformly without replacement, sorted.

    The draw depends on (seed, purpose, server_round) and the set of client ids, not on their order.
    """
    # A range may have millions and is never written out; of two with the same members the ascending one is taken.
    ids = client_ids[::-1] if isinstance(client_ids, range) and client_ids.step < 0 else client_ids
    ids = ids if isinstance(ids, range) else sorted(ids)
    if size >= len(ids):
        return list(ids)
    rng = np.random.default_rng(np.random.SeedSequence([seed, crc32(purpose.encode()), server_round]))
    chosen = rng.choice(len(ids), size=size, replace=False, shuffle=False)
    return [ids[place] for place in np.sort(chosen).tolist()]


def poisson_sample(seed: int, purpose: str, server_round: int, client_ids: Iterable[int], rate: float) -> list[int]:
    """Return the client ids of a Poisson sample, sorted: each with probability ``rate``, independently of all others.

    The draw depends on (seed, purpose, server_round) and the set of client ids, not on their order.
    """
    ids = np.sort(np.fromiter(client_ids, dtype=np.int64))
    rng = np.random.default_rng(np.random.SeedSequence([seed, crc32(purpose.encode()), server_round]))
    return [int(client) for client in ids[rng.random(len(ids)) < rate]]


class Cohorts(Stateless):
    """Choose a round's clients for ``strategy``; sort its messages and the replies by client id.

    fraction: share of the clients in a training round, in (0, 1]; at least one client takes part. Around a layer of
        which ``poisson`` is true it is the probability with which each takes part: see :func:`poisson_sample`.
    seed: with the round it determines the cohort; see :func:`sample_clients`.
    client_ids: node id -> client id of the nodes that a grid has now. A mapping that knows its inverse, as the
        simulation's does (``clients``: all client ids; ``node_of``), is not read entry by entry: it may have millions.

    ``strategy`` gets a grid whose nodes are exactly the cohort; its own sampling must take all of them. ``cohort``
    holds the client ids of the latest training round, ``evaluated`` those of the latest evaluation.
    """

    needs_every_reply = False

    def __init__(
        self, strategy: Strategy, fraction: float, seed: int, client_ids: Callable[[Grid], Mapping[int, int]]
    ) -> None:
        super().__init__(strategy)
        if not 0.0 < fraction <= 1.0:
            raise FedMoEError(f"federation.client_fraction must be above 0 and at most 1, is {fraction}")
        self.fraction = fraction
        self.seed = seed
        self.client_ids = client_ids
        self.cohort: list[int] = []
        self.evaluated: list[int] = []
        self._evaluate_on: frozenset[int] | None = None
        self._clients: Mapping[int, int] = {}  # node id -> client id, as of the latest configure

    def evaluate_on(self, client_ids: Iterable[int] | None) -> None:
        """Evaluate on these clients from now on; None: on all. Those not connected are left out."""
        self._evaluate_on = None if client_ids is None else frozenset(client_ids)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the cohort, sorted by client id. FedMoEError: no client, or a strategy that wants more."""
        clients, node_of = self._connected(grid)
        self.cohort = self._sampled(server_round, clients)
        self._check_sampling("train", len(self.cohort))
        view = grid_of_nodes(grid, {node_of(client): client for client in self.cohort})
        return self._sent(self.strategy.configure_train(server_round, arrays, config, view))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies in the order of their client ids, whatever the order of arrival."""
        return self.strategy.aggregate_train(server_round, self._received(replies))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the clients of :meth:`evaluate_on`, sorted by client id."""
        clients, node_of = self._connected(grid)
        wanted = clients if self._evaluate_on is None else self._evaluate_on
        self.evaluated = sorted(client for client in wanted if client in clients)
        if not self.evaluated:
            raise FedMoEError("none of the clients to evaluate on is connected; connect them or evaluate on others")
        self._check_sampling("evaluate", len(self.evaluated))
        view = grid_of_nodes(grid, {node_of(client): client for client in self.evaluated})
        return self._sent(self.strategy.configure_evaluate(server_round, arrays, config, view))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate the replies in the order of their client ids."""
        return self.strategy.aggregate_evaluate(server_round, self._received(replies))

    def _sampled(self, server_round: int, clients: Collection[int]) -> list[int]:
        layers = [part for part in chain(self.strategy) if isinstance(part, Layer)]
        for layer in layers:
            layer.expect(len(clients))
        if not any(layer.poisson for layer in layers):
            # The small term keeps 0.29 * 100 = 28.999... from losing a client.
            size = max(1, int(self.fraction * len(clients) + 1e-9))
            return sample_clients(self.seed, "cohort", server_round, clients, size)
        cohort = poisson_sample(self.seed, "cohort", server_round, clients, self.fraction)
        if not cohort:
            raise FedMoEError(f"round {server_round}: the Poisson sample of privacy is empty; raise client_fraction")
        return cohort

    def _connected(self, grid: Grid) -> tuple[Collection[int], Callable[[int], int]]:
        """Return the ids of the connected clients, and what tells a client's node id."""
        mapping: Any = self.client_ids(grid)
        if hasattr(mapping, "clients"):
            self._clients, clients, node_of = mapping, mapping.clients, mapping.node_of
        else:
            self._clients, clients = dict(mapping), {}
            for node, client in self._clients.items():
                if client in clients:
                    raise FedMoEError(
                        f"client {client} is claimed by nodes {clients[client]} and {node}; stop one of them"
                    )
                clients[client] = node
            node_of = clients.__getitem__
        if not clients:
            raise FedMoEError("no client is connected; start the clients before the run")
        return clients, node_of

    def _check_sampling(self, phase: str, size: int) -> None:
        """Refuse what would make Flower's own sampling random again, or wait for nodes for ever."""
        for part in chain(self.strategy):
            where = f"federation.strategy_parameters of {type(part).__name__}:"
            for other in ("train", "evaluate"):  # both at once: a run should not find out when it is at its end
                if (share := getattr(part, f"fraction_{other}", 1.0)) != 1.0:
                    raise FedMoEError(
                        f"{where} fraction_{other} must be 1, is {share}; set federation.client_fraction instead, or "
                        "federation.evaluate_clients"
                    )
            for name in (f"min_{phase}_nodes", "min_available_nodes"):
                if (least := getattr(part, name, 0)) > size:
                    raise FedMoEError(
                        f"{where} {name} is {least}, but {size} clients take part; "
                        f"lower it, raise federation.client_fraction or connect more clients"
                    )

    def _sent(self, messages: Iterable[Message]) -> list[Message]:
        return sorted(messages, key=lambda message: self._place(message.metadata.dst_node_id))

    def _received(self, replies: Iterable[Message]) -> list[Message]:
        return sorted(replies, key=lambda reply: self._place(reply.metadata.src_node_id))

    def _place(self, node_id: int) -> tuple[bool, int]:
        """Sort key: client id; nodes without one come last, by node id."""
        client = self._clients.get(node_id)
        return (client is None, node_id if client is None else client)


def grid_of_nodes(grid: Grid, clients: Mapping[int, int]) -> Grid:
    """Return a grid that shows these nodes of another grid, and is that grid in all else.

    clients: node id -> client id, which the grid tells as ``client_ids()``.
    """
    return cast(Grid, _View(grid, clients))


class GridAround:
    """Another grid in all that a subclass does not change; ``grid`` is that one."""

    grid: Grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)


@Grid.register
class _View(GridAround):
    def __init__(self, grid: Grid, clients: Mapping[int, int]) -> None:
        self.grid = grid
        self._clients = dict(clients)

    def get_node_ids(self) -> list[int]:
        return list(self._clients)

    def get_nodes(self) -> Iterable[Any]:
        return [node for node in cast(Any, self.grid).get_nodes() if node.node_id in self._clients]

    def client_ids(self) -> dict[int, int]:
        return dict(self._clients)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies by client, whatever the order of arrival."""
        replies = self.grid.send_and_receive(messages, timeout=timeout)
        return sorted(replies, key=lambda reply: self._clients.get(reply.metadata.src_node_id, -1))
