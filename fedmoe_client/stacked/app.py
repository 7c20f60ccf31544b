"""Train messages of many simulated clients, carried out in stacks. An engine hands them over all at once.

What a client does is what ``fedmoe_client.app`` does for it alone: the same arrays and metrics go to the server and the
same private parameters stay in its context, and differential privacy clips and blurs what leaves it. Where the server
needs the mean alone, it is taken here, and no client's update is ever put together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor

from fedmoe.errors import FedMoEError
from fedmoe.wire import NamedArrays, packed_in, to_record
from fedmoe_client.app import answered, app, extra_of, number_of, received
from fedmoe_client.learning.client import Answer, FedMoEClient, to_send, workbench
from fedmoe_client.learning.own_client import TABLE, LocalRound, records_to_send, trained_alone
from fedmoe_client.learning.private_reply import ASKED, SUM_BITS
from fedmoe_client.learning.training import Outcome
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.stacked.training import Member, StackTrainer, Trained, UpdateSum, stacks_of
from fedmoe_client.store.private import InContext

if TYPE_CHECKING:
    from fedmoe_client.learning.summed_reply import SumOfAnswers


@dataclass(frozen=True)
class _Round:
    """The clients of a call, in the order of their messages, the round's config and the server's arrays."""

    bench: Workbench
    clients: Sequence[FedMoEClient]
    config: Mapping[str, Any]
    server: Mapping[str, Tensor]
    shared: Sequence[str]


def train(messages: Sequence[Message], contexts: Sequence[Context], reduce: bool) -> list[Message]:
    """Carry out train messages of one round; the contexts' states advance.

    Returns a reply for each message; or, where ``reduce`` is set, fewer: each but the errors a weighted mean of as many
    clients as its metric ``num-clients`` says. Clients that were sent different models or configs are not stacked with
    each other.

    Raises FedMoEError if these settings' clients cannot be stacked: they must be trained one by one.
    """
    alike = _alike(messages)
    if reduce and len(alike) > 1:
        raise FedMoEError("replies to different models or configs have no mean in common")
    replies: dict[int, Message] = {}
    for places in alike:
        found = _train([messages[place] for place in places], [contexts[place] for place in places], reduce)
        if reduce:
            return found
        replies |= dict(zip(places, found, strict=True))
    return [replies[place] for place in range(len(messages))]


def _alike(messages: Sequence[Message]) -> list[list[int]]:
    """Return the places of the messages that hold the same model and config, in their order."""
    places: dict[tuple[int, str], list[int]] = {}
    for place, message in enumerate(messages):
        # Clients of a call that are sent the same model are handed the very same arrays.
        packed = packed_in(message.content.array_records["arrays"])
        config = repr(sorted(message.content.config_records["config"].items()))
        places.setdefault((id(packed), config), []).append(place)
    return list(places.values())


def _train(messages: Sequence[Message], contexts: Sequence[Context], reduce: bool) -> list[Message]:
    """Carry out train messages with the same model and config, as ``train`` says."""
    this = _begin(messages[0], contexts)
    trainer = _trainer(this.bench)
    if reduce and this.bench.own_client is not None and SUM_BITS not in this.config:
        raise FedMoEError(f"the hooks of {this.bench.settings.training.client} see single clients, not their mean")
    if reduce and not ASKED.isdisjoint(this.config):
        raise FedMoEError("replies that are clipped, or made noisy, cannot be merged before they are")
    for message, client in zip(messages, this.clients, strict=True):
        client.extra = extra_of(message)
    members, alone = _members(this, reduce)
    shared = {name: this.server[name] for name in this.shared}
    total = _total(this, shared, members) if reduce else None
    replies: dict[int, Message] = {}
    settings = this.bench.settings
    for stack in stacks_of(members, settings.simulation.stack_size, settings.model.memory_refresh):
        try:
            trained = trainer.train(stack, this.server, int(this.config["server-round"]))
        except (FloatingPointError, FedMoEError):  # one of them at fault: the others must not pay for it
            alone += [member.place for member in stack]
            continue
        if isinstance(total, UpdateSum):
            total.add(trained)
        else:
            for place, answer in _each(this, trained):
                if total is None:
                    replies[place] = answered(messages[place], *answer)
                else:
                    total.add(answer)
        _keep_private(this, trained)
    replies |= {place: app(messages[place], contexts[place]) for place in alone}
    found = [reply for _, reply in sorted(replies.items())]
    if total is None or not total.clients:
        return found
    merged = _mean_reply(messages[0], total) if isinstance(total, UpdateSum) else answered(messages[0], *total.answer())
    return [merged, *found]


def _total(this: _Round, shared: Mapping[str, Tensor], members: Sequence[Member]) -> UpdateSum | SumOfAnswers:
    """Return what the clients' updates are added up in."""
    if SUM_BITS not in this.config:
        touched = torch.unique(
            torch.cat([this.server[TABLE].new_zeros(1, dtype=torch.long), *(member.touched for member in members)])
        )
        return UpdateSum(shared, this.bench.settings, touched)
    from fedmoe_client.learning.summed_reply import SumOfAnswers

    return SumOfAnswers(this.config, {name: tuple(each.shape) for name, each in shared.items()})


def _begin(message: Message, contexts: Sequence[Context]) -> _Round:
    bench = workbench(contexts[0].run_config)
    config = dict(message.content.config_records["config"])
    arrays = received(bench, packed_in(message.content.array_records["arrays"]))
    server = {name: torch.from_numpy(each).to(bench.device) for name, each in zip(bench.names, arrays, strict=True)}
    shared = bench.names_in(tuple(cast(list[str], config["shared"])))
    if bench.own_client is not None and (own := trained_alone(bench.own_client)):
        raise FedMoEError(
            f"training.client {bench.settings.training.client} has {', '.join(own)}, which does not stack"
        )
    if bench.settings.training.loss == "softmax":
        raise FedMoEError("training.loss = softmax runs over the whole catalogue, which does not stack")
    if TABLE not in shared:
        raise FedMoEError("the group 'embedding' is private, and a table of its own for each client does not stack")
    clients = [FedMoEClient(bench, number_of(each), InContext(each.state), simulated=True) for each in contexts]
    return _Round(bench, clients, config, server, shared)


@lru_cache(maxsize=1)
def _trainer(bench: Workbench) -> StackTrainer:
    return StackTrainer(bench.model, bench.settings.training)


def _members(this: _Round, reduce: bool) -> tuple[list[Member], list[int]]:
    """Return the clients that go into stacks, and the places of those that must be trained alone."""
    members, alone = [], []
    for place, client in enumerate(this.clients):
        try:
            steps = client.steps(client.client, int(this.config["server-round"]))
        except FedMoEError:  # no item left to draw negatives from, say
            alone.append(place)
            continue
        if reduce and steps.weight > this.bench.settings.federation.guards.max_examples:
            alone.append(place)  # the server refuses the reply, which it cannot do to a part of a mean
            continue
        own = {
            name: torch.from_numpy(array).to(this.bench.device) for name, array in client.load_own(this.shared).items()
        }
        members.append(Member(place, steps, own))
    if this.config.get("proximal-mu", 0.0) and any(len(member.steps.batches) > 1 for member in members):
        raise FedMoEError("fedprox with more than one local step is not stacked")
    return members, alone


def _keep_private(this: _Round, trained: Trained) -> None:
    private = [name for name in this.bench.names if name not in this.shared]
    values = {name: trained.parameters[name].cpu().numpy() for name in private}
    for row, member in enumerate(trained.members):
        client = this.clients[member.place]
        client.keep({name: np.array(value[row]) for name, value in values.items()})


def _each(this: _Round, trained: Trained) -> Iterator[tuple[int, Answer]]:
    """Yield the place of each client of a stack, and what leaves it."""
    server = {name: each.cpu().numpy() for name, each in this.server.items()}
    values = {name: trained.parameters[name].cpu().numpy() for name in this.shared}
    touched = trained.touched.cpu().numpy()
    for row, member in enumerate(trained.members):
        size = np.count_nonzero(touched[row]) + 1  # rows beyond the client's own are padding
        own = {name: np.asarray(value[row]) for name, value in values.items()}
        sent = to_send(this.bench, own | {TABLE: own[TABLE][:size]}, touched[row, :size], server[TABLE], this.shared)
        client = this.clients[member.place]
        if (hooks := this.bench.own_client) is not None:
            given = this.bench.settings, client.client, this.config, client.extra
            start = server | {name: each.cpu().numpy() for name, each in member.own.items()}
            told = LocalRound(
                *given, start, list(this.shared), touched[row, :size], [member.steps], client.kept, _alone
            )
            hooks.before_round(told)
            sent, client.reply = hooks.sent(told, sent), records_to_send(told)
        numbers = {name: float(value[row]) for name, value in trained.metrics.items()}
        metrics = {"num-examples": member.steps.weight, **numbers}
        yield member.place, client.answer(server, *client.as_asked(server, sent, metrics, this.config), this.config)


def _alone(*_: Any) -> tuple[NamedArrays, Outcome]:
    """Stand for the training of a client of one's own, which only hooks that do not stack may ask for."""
    raise FedMoEError("a client that trains once more must do so in after_round, for which it is trained alone")


def _mean_reply(message: Message, total: UpdateSum) -> Message:
    """Return the mean of all stacked clients; ``num-bytes``: what their replies would have weighed one by one."""
    metrics = MetricRecord({"num-examples": total.weight, **total.metrics()})
    counts = {"num-clients": total.clients, "num-bytes": total.bytes + total.clients * metrics.count_bytes()}
    numbers = MetricRecord({**dict(metrics.items()), **counts})
    return Message(content=RecordDict({"arrays": to_record(total.mean()), "metrics": numbers}), reply_to=message)
