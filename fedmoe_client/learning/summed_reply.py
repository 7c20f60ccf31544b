"""What a client answers where the server wants nothing but exact sums: integers to be added up, in place of arrays.

The server asks for it in the message's config (see ``fedmoe.sums.terms``). Weight and metrics are in the integers, so
the reply says nothing of the one client but the names of its metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from data.sampling import generator
from fedmoe.errors import FedMoEError
from fedmoe.sums.quantise import CLIPPED, WEIGHT, quantised, to_digits
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import NAMES, NUMBERS, ExactSum, Shapes
from fedmoe.wire import ROWS, NamedArrays

if TYPE_CHECKING:
    from fedmoe_client.learning.client import FedMoEClient

CLIENTS = "num-clients"  # the one metric of a reply: how many clients it is the sum of


def summed_reply(
    client: FedMoEClient,
    server: NamedArrays,
    trained: NamedArrays | None,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
) -> tuple[NamedArrays, dict[str, int], RecordDict]:
    """Return the integers of a reply, how many clients they are of, and the record that names their metrics.

    server: all parameters as they came; trained: the shared ones after training, of a table perhaps some rows; None
    after an evaluation.
    """
    settings = client.workbench.settings
    refuse_records(client.reply, settings.training.client)
    terms, weight = Terms.of_config(config), int(metrics[WEIGHT])
    others = {name: value for name, value in metrics.items() if name != WEIGHT}
    integers: NamedArrays = {}
    if trained is not None:
        rng = rounding_stream(settings.seed, int(config["server-round"]), client.client)
        integers, clipped = quantised(_update(server, trained), weight, terms, rng)
        integers |= {name: rows for name, rows in trained.items() if name.endswith(ROWS)}
        others[CLIPPED] = int(clipped)
    names = ConfigRecord({"metrics": list(others)})
    return integers | {NUMBERS: to_digits(others, weight, terms)}, {CLIENTS: 1}, RecordDict({NAMES: names})


class SumOfAnswers:
    """The sum of many clients' answers to messages of one config; shapes: of the shared arrays, in their order."""

    def __init__(self, config: Mapping[str, Any], shapes: Shapes) -> None:
        self._total = ExactSum(Terms.of_config(config), shapes)
        self._records = RecordDict()

    @property
    def clients(self) -> int:
        """How many clients there are in it."""
        return self._total.clients

    def add(self, answer: tuple[NamedArrays | None, Mapping[str, int], RecordDict]) -> None:
        """Add what ``summed_reply`` returned for a client."""
        arrays, _, self._records = answer
        names = self._records.config_records[NAMES]["metrics"]
        self._total.add(arrays or {}, cast(list[str], names))

    def answer(self) -> tuple[NamedArrays, dict[str, int], RecordDict]:
        """Return the sum in the form of a client's answer."""
        return self._total.travelling(), {CLIENTS: self.clients}, self._records


def rounding_stream(seed: int, server_round: int, client: int) -> np.random.Generator:
    """Return what a client draws from to round its update of a round.

    It may follow from the seed with real clients too: what protects an update is the mask or the noise.
    """
    return generator(seed, "rounding", server_round, client)


def refuse_records(records: RecordDict, client: str) -> None:
    """Raise FedMoEError for records of a client of one's own, which are no part of a sum."""
    if records:
        raise FedMoEError(
            f"training.client {client} sends records of its own, which exact sums have no place for: "
            "set privacy.sum_bits to 0, or use another client"
        )


def _update(server: NamedArrays, trained: NamedArrays) -> NamedArrays:
    """Return what training has changed in each array, of a table in the rows that are there."""
    return {
        name: np.subtract(array, server[name][trained.get(name + ROWS, ...)], dtype=np.float32)
        for name, array in trained.items()
        if not name.endswith(ROWS)
    }
