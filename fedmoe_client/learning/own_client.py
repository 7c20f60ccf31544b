"""A client of one's own: a few hooks around what every client does in a round.

``training.client`` is ``package.module:Class``, a subclass of ``OwnClient``, with ``training.client_parameters`` for
its constructor. A process makes it once and uses it for all of its clients, so it holds settings alone: what one client
remembers is in ``LocalRound.kept``, which is stored beside the client's private parameters, in simulation, checkpoints
and deployment alike, and never sent. ``examples/clients`` has SCAFFOLD, Ditto and FedProx.

Shapes: V items, R touched items with the padding (0), D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.components import Kind
from fedmoe.errors import FedMoEError
from fedmoe.metrics import catalogue_metrics
from fedmoe.settings import Settings
from fedmoe_client.learning.additions import Addition
from fedmoe_client.learning.private_reply import ASKED
from fedmoe_client.learning.training import LocalSteps, Outcome, warmed_up
from fedmoe_client.store.private import NamedArrays

TABLE = "items.ids.weight"
PLAIN = "plain"  # the registered name of the client without hooks
Parameters = Mapping[str, Tensor]
Table = NDArray[np.float32]  # [V + 1, D], row 0 is the padding
Term = Callable[[Parameters], Tensor]
Training = Callable[[NamedArrays, Callable[[Parameters], Sequence[Addition]]], tuple[NamedArrays, Outcome]]
ALONE = ("loss", "step", "after_round")  # hooks for which a client is trained alone, and not in a stack of clients


@dataclass
class LocalRound:
    """What the hooks of one client's round are told, and where they leave what they have to say.

    Attributes:
        settings: of the run.
        client: the client's number.
        config: the message's, from the strategy.
        extra: the message's records other than "arrays" and "config".
        start: all parameters that the training starts from, the item table ``[V + 1, D]``; to be read only.
        shared: names of the parameters that the server aggregates in this round.
        touched: ids of the items that the training reads, int64 ``[R]``, 0 first: the rows of the item table in
            training.
        users: the drawn steps of each of the client's users, in their order.
        kept: numeric arrays by name, the client's own from round to round; change it in place.
        training: trains on these steps; see ``train``.
        reply: records that go back to the server, by names other than "arrays" and "metrics".
    """

    settings: Settings
    client: int
    config: Mapping[str, Any]
    extra: RecordDict
    start: NamedArrays
    shared: list[str]
    touched: NDArray[np.int64]
    users: Sequence[LocalSteps]
    kept: dict[str, NDArray[Any]]
    training: Training
    reply: RecordDict = field(default_factory=RecordDict)

    @property
    def number(self) -> int:
        """The round's number, from 1."""
        return int(self.config["server-round"])

    @property
    def steps(self) -> int:
        """Local steps of the round."""
        return sum(len(user.batches) for user in self.users)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the client's optimiser in this round."""
        return warmed_up(self.settings.training, self.number)

    def train(self, start: NamedArrays, term: Term | None = None) -> NamedArrays:
        """Train on the round's batches once more, from arrays like ``start``, with ``term`` added to the loss.

        Returns all arrays, of the item table the touched rows; the other hooks are not called.
        """
        return self.training(start, lambda used: [] if term is None else [OnlyTerm(term, used)])[0]

    def tensors(self, arrays: Mapping[str, NDArray[Any]], like: Parameters) -> dict[str, Tensor]:
        """Return arrays like ``start`` as tensors of the form and on the device of the parameters in training."""
        rows = {name: array[self.touched] if name == TABLE else array for name, array in arrays.items()}
        return {
            name: torch.tensor(array, dtype=torch.float32, device=like[name].device) for name, array in rows.items()
        }


class OwnClient:
    """The base of a client of one's own; every hook may be left as it is.

    whole_table: whether the whole item table is trained, and not only the rows of the items that the round's batches
    hold: for a rule that moves rows without a gradient.
    """

    whole_table = False

    def before_round(self, this: LocalRound) -> None:
        """Get ready: read ``this.extra``, complete ``this.kept``."""

    def loss(self, this: LocalRound, parameters: Parameters) -> Tensor | None:
        """Return a scalar that is added to the loss of a step, or None.

        parameters: in training, by name, with gradients; of the item table the touched rows ``[R, D]``.
        """
        return None

    def step(self, this: LocalRound, parameters: Parameters) -> None:
        """Change the gradients, after they were clipped and before the optimiser's step: ``parameter.grad``."""

    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        """Conclude: update ``this.kept``, write ``this.reply``.

        trained: all parameters by name, of the item table the touched rows ``[R, D]``.
        """

    def sent(self, this: LocalRound, arrays: NamedArrays) -> NamedArrays:
        """Return what goes to the server in place of ``arrays``, the shared ones: same names, shapes and types."""
        return arrays

    def ranks_with(self, kept: Mapping[str, NDArray[Any]]) -> NamedArrays:
        """Return parameters, by name and whole, with which the client ranks in place of the server's; {}: none."""
        return {}

    def example_extra(self, arrays: NamedArrays) -> RecordDict:
        """Return records like those that the strategy sends beside the model, for ``python -m fedmoe_client.check``.

        arrays: the shared parameters, whose names and shapes such records often have. What a ConfigRecord "config"
        holds is added to the message's config.
        """
        return RecordDict()


CLIENTS: Kind[OwnClient] = Kind("training.client", "training.client_parameters", OwnClient, {PLAIN: OwnClient})


def own_client(settings: Settings) -> OwnClient | None:
    """Return the client that the settings name; None: the plain one. FedMoEError: it cannot be made."""
    client = CLIENTS.build(settings.training.client, settings.training.client_parameters)
    return None if settings.training.client == PLAIN else client


def trained_alone(own: OwnClient) -> list[str]:
    """Return the names of what keeps such a client from being trained in a stack; none: it can be."""
    hooks = [name for name in ALONE if getattr(type(own), name) is not getattr(OwnClient, name)]
    return hooks + ["whole_table"] * own.whole_table


def check_components(settings: Settings) -> None:
    """Make the client and the metrics of one's own: who cannot be made should end a run, not fail each client."""
    own_client(settings)
    catalogue_metrics(settings)  # makes those of a rank, too


@dataclass(frozen=True)
class Hooked(Addition):
    """The hooks of a client of one's own, as the training loop calls them."""

    own: OwnClient
    this: LocalRound
    parameters: Parameters

    def term(self) -> Tensor | None:
        """Return the client's own term of the loss."""
        return self.own.loss(self.this, self.parameters)

    def step(self) -> None:
        """Let the client change the gradients."""
        self.own.step(self.this, self.parameters)


@dataclass(frozen=True)
class OnlyTerm(Addition):
    """A term of the loss, given as a function of the parameters."""

    function: Term
    parameters: Parameters

    def term(self) -> Tensor | None:
        """Return the term."""
        return self.function(self.parameters)


def hooked_training(
    own: OwnClient, this: LocalRound, beside: Callable[[Parameters], Sequence[Addition]]
) -> tuple[NamedArrays, Outcome]:
    """Train with the hooks of a client of one's own, and with what the strategy wants beside the loss."""
    own.before_round(this)
    trained, outcome = this.training(this.start, lambda used: [*beside(used), Hooked(own, this, used)])
    own.after_round(this, trained)
    return trained, outcome


def records_to_send(this: LocalRound) -> RecordDict:
    """Return the records that a client of one's own answers. FedMoEError: it may not in a private run."""
    if this.reply and not ASKED.isdisjoint(this.config):
        raise FedMoEError(
            f"training.client {this.settings.training.client} sends records of its own, which differential privacy "
            "neither clips nor blurs: switch privacy off, or use another client"
        )
    return this.reply


def in_table(table: Table, touched: NDArray[np.int64], rows: NDArray[np.float32]) -> Table:
    """Return a copy of ``table`` ``[V + 1, D]`` with ``rows`` ``[R, D]`` at ``touched`` ``[R]``."""
    whole = table.copy()
    whole[touched] = rows
    return whole
