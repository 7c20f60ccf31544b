"""What a client answers where the server wants nothing but exact sums: integers to be added up, in place of arrays.

The server asks for it in the message's config (see ``fedmoe.sums.terms``). Weight and metrics are in the integers, so
the reply says nothing of the one client but the names of its metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from data.sampling import generator
from fedmoe.errors import FedMoEError
from fedmoe.sums.noise import discrete_gaussian
from fedmoe.sums.quantise import CLIPPED, WEIGHT, quantised, to_digits
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import NAMES, NUMBERS, WHOLE, ExactSum, Shapes, tables_of
from fedmoe.wire import ROWS, NamedArrays
from fedmoe_client.learning.private_reply import noise_stream

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
    after an evaluation. Where noise is asked for, all clients weigh the same, no metric is sent, and all rows of a
    table are.
    """
    settings = client.workbench.settings
    refuse_records(client.reply, settings.training.client)
    terms, weight = Terms.of_config(config), int(metrics[WEIGHT])
    others = {name: value for name, value in metrics.items() if name != WEIGHT}
    integers: NamedArrays = {WHOLE: np.zeros(0, np.int32)}
    number = int(config["server-round"])
    if trained is not None and terms.variance:
        weight, others = 1, {}
    if trained is not None:
        rounding = rounding_stream(settings.seed, number, client.client)
        integers, clipped = _integers(server, trained, weight, terms, rounding)
        if terms.variance:
            noise = noise_stream(client.simulated, settings.seed, number, client.client)
            integers = _noisy(server, integers, terms, noise)
        else:
            others[CLIPPED] = int(clipped)
    added = [name for name in server if name in (trained or ())]
    names = ConfigRecord({"metrics": json.dumps(list(others)), "arrays": json.dumps(added)})
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
        self._total.add(arrays or {}, json.loads(str(self._records.config_records[NAMES]["metrics"])))

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


def _integers(
    server: NamedArrays, trained: NamedArrays, weight: int, terms: Terms, rng: np.random.Generator
) -> tuple[NamedArrays, bool]:
    """Return an update's integers as they travel, and whether it was clipped."""
    tables = tables_of(trained)
    # In the server's order, tables of which rows travel last; in one piece, or numbers of calls would cost the most.
    order = sorted((name for name in server if name in trained), key=lambda name: name in tables)
    ends = np.cumsum([trained[name].size for name in order]).tolist()
    update = np.empty(ends[-1], np.float32)
    for name, end in zip(order, ends, strict=True):
        part = update[end - trained[name].size : end].reshape(trained[name].shape)
        np.subtract(trained[name], server[name][trained.get(name + ROWS, ...)], out=part)
    integers, clipped = quantised(update, weight, terms, rng)
    parts = {
        name: integers[end - trained[name].size : end].reshape(trained[name].shape)
        for name, end in zip(order, ends, strict=True)
        if name in tables
    }
    whole = integers[: len(integers) - sum(part.size for part in parts.values())]
    return {WHOLE: whole, **parts, **{name + ROWS: trained[name + ROWS] for name in tables}}, clipped


def _noisy(server: NamedArrays, integers: NamedArrays, terms: Terms, rng: np.random.Generator) -> NamedArrays:
    """Return the integers with noise on each number, of all rows of a table."""
    found: NamedArrays = {WHOLE: integers[WHOLE] + discrete_gaussian(terms.variance, len(integers[WHOLE]), rng)}
    for name in tables_of(integers):
        table = np.zeros(server[name].shape, np.int64)
        table[integers[name + ROWS]] = integers[name]
        rows = table[1:]  # the padding's never moves
        noise = discrete_gaussian(terms.variance, rows.size, rng).reshape(rows.shape)
        found |= {name: rows + noise, name + ROWS: np.arange(1, len(table))}
    return found
