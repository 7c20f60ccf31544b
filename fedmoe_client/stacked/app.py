"""Train messages of many simulated clients, carried out in stacks. An engine hands them over all at once.

What a client does is what ``fedmoe_client.app`` does for it alone: the same arrays and metrics go to the server and the
same private parameters stay in its context, and differential privacy clips and blurs what leaves it. Where the server
needs the mean alone, it is taken here, and no client's update is ever put together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor

from fedmoe.errors import FedMoEError
from fedmoe.wire import packed_bytes, to_record
from fedmoe_client.app import app, train_reply
from fedmoe_client.device.node import node_from
from fedmoe_client.learning.client import FedMoEClient, to_send
from fedmoe_client.learning.private_reply import ASKED
from fedmoe_client.learning.sub_catalogue import TABLE
from fedmoe_client.learning.workbench import Workbench, workbench
from fedmoe_client.stacked.mean import UpdateSum
from fedmoe_client.stacked.training import Member, StackTrainer, Trained, stacks_of
from fedmoe_client.store.private import PrivateParameters


@dataclass
class _Round:
    """The messages of one call, which share the server's arrays and the round's config."""

    bench: Workbench
    trainer: StackTrainer
    messages: Sequence[Message]
    contexts: Sequence[Context]
    config: Mapping[str, Any]
    server: Mapping[str, Tensor]
    shared: list[str]
    places: dict[int, int] = field(default_factory=dict)  # client -> place of its message


def train(messages: Sequence[Message], contexts: Sequence[Context], reduce: bool) -> list[Message]:
    """Carry out train messages of one round; the contexts' states advance.

    Returns a reply for each message; or, where ``reduce`` is set, fewer: each but the errors a weighted mean of as many
    clients as its metric ``num-clients`` says.

    Raises FedMoEError if these settings' clients cannot be stacked: they must be trained one by one.
    """
    this = _begin(messages, contexts, reduce)
    replies: dict[int, Message] = {}
    members = _members(this, reduce, replies)
    total = _sum(this) if reduce else None
    for stack in stacks_of(members, this.bench.settings.simulation.stack_size):
        try:
            trained = this.trainer.train(stack, this.server, int(this.config["server-round"]))
        except (FloatingPointError, FedMoEError):  # one of them at fault: the others must not pay for it
            for member in stack:
                place = this.places[member.client]
                replies[place] = app(messages[place], contexts[place])
            continue
        _keep_private(this, trained)
        if total is not None:
            total.add(trained)
        else:
            for place, reply in _each(this, trained):
                replies[place] = reply
    found = [reply for _, reply in sorted(replies.items())]
    return [_mean_reply(this, total), *found] if total is not None and total.clients else found


def _begin(messages: Sequence[Message], contexts: Sequence[Context], reduce: bool) -> _Round:
    bench = workbench(contexts[0].run_config)
    config = dict(messages[0].content.config_records["config"])
    arrays = bench.received(packed_bytes(messages[0].content.array_records["arrays"]))
    server = {name: torch.from_numpy(each).to(bench.device) for name, each in zip(bench.names, arrays, strict=True)}
    shared = bench.names_in(cast(list[str], config["shared"]))
    _require_stackable(bench, shared)
    if reduce and not ASKED.isdisjoint(config):
        raise FedMoEError("replies that are clipped, or made noisy, cannot be merged before they are")
    return _Round(bench, _trainer(bench), messages, contexts, config, server, shared)


def _sum(this: _Round) -> UpdateSum:
    rows_travel = this.bench.settings.federation.item_updates == "auto"
    return UpdateSum({name: this.server[name] for name in this.shared}, rows_travel)


def _require_stackable(bench: Workbench, shared: Sequence[str]) -> None:
    if bench.settings.training.loss == "softmax":
        raise FedMoEError("training.loss = softmax runs over the whole catalogue, which does not stack")
    if TABLE not in shared:
        raise FedMoEError("the group 'embedding' is private, and a table of its own for each client does not stack")


@lru_cache(maxsize=1)
def _trainer(bench: Workbench) -> StackTrainer:
    return StackTrainer(bench.model, bench.settings.training)


def _members(this: _Round, reduce: bool, replies: dict[int, Message]) -> list[Member]:
    """Return the clients that go into stacks; others are trained alone, and their replies put into ``replies``."""
    members = []
    for place, (message, context) in enumerate(zip(this.messages, this.contexts, strict=True)):
        try:
            member = _member(this, place)
        except FedMoEError:  # no item left to draw negatives from, say
            replies[place] = app(message, context)
            continue
        if reduce and member.steps.weight > this.bench.settings.federation.guards.max_examples:
            replies[place] = app(message, context)  # the server refuses it, which it cannot do to a part of a mean
        else:
            members.append(member)
    if this.config.get("proximal-mu", 0.0) and any(len(member.steps.batches) > 1 for member in members):
        raise FedMoEError("fedprox with more than one local step is not stacked")
    return members


def _member(this: _Round, place: int) -> Member:
    """Draw a client's steps and fetch its own parameters."""
    context = this.contexts[place]
    number = node_from(context.node_config).sole_number
    this.places[number] = place
    private = PrivateParameters(context.state)
    client = FedMoEClient(this.bench, number, private)
    own = {
        name: torch.from_numpy(array).to(this.bench.device)
        for name, array in private.load().items()
        if name not in this.shared
    }
    return Member(number, client.steps(number, int(this.config["server-round"])), own)


def _keep_private(this: _Round, trained: Trained) -> None:
    private = [name for name in this.bench.names if name not in this.shared]
    values = {name: trained.parameters[name].cpu().numpy() for name in private}
    for row, member in enumerate(trained.members):
        state = PrivateParameters(this.contexts[this.places[member.client]].state)
        state.save({name: np.array(value[row]) for name, value in values.items()})


def _each(this: _Round, trained: Trained) -> Iterator[tuple[int, Message]]:
    """Yield the place and the reply of each client of a stack."""
    table = this.server[TABLE].cpu().numpy()
    values = {name: trained.parameters[name].cpu().numpy() for name in this.shared}
    touched = trained.touched.cpu().numpy()
    for row, member in enumerate(trained.members):
        size = np.count_nonzero(touched[row]) + 1  # rows beyond the client's own are padding
        own = {name: np.asarray(value[row]) for name, value in values.items()}
        sent = to_send(this.bench, own | {TABLE: own[TABLE][:size]}, touched[row, :size], table, this.shared)
        numbers = {name: float(value[row]) for name, value in trained.metrics.items()}
        metrics = {"num-examples": member.steps.weight, **numbers}
        place = this.places[member.client]
        yield place, train_reply(this.messages[place], this.contexts[place], sent, metrics)


def _mean_reply(this: _Round, total: UpdateSum) -> Message:
    """Return the mean of all stacked clients; ``num-bytes``: what their replies would have weighed one by one."""
    metrics = MetricRecord({"num-examples": total.weight, **total.metrics()})
    counts = {"num-clients": total.clients, "num-bytes": total.bytes + total.clients * metrics.count_bytes()}
    numbers = MetricRecord({**dict(metrics.items()), **counts})
    content = RecordDict({"arrays": to_record(total.mean()), "metrics": numbers})
    return Message(content=content, reply_to=this.messages[0])
