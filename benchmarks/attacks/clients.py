"""Clients of which some are bad: the product's client app, whose replies an attack changes before they leave.

Which clients are bad and what they do is the key ``attack`` of the run config, an ``Attack`` as JSON.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.runs import context_length
from data.sampling import training_part
from fedmoe.wire import ROWS, NamedArrays, packed_bytes, to_record, unpack
from fedmoe_client.app import app as honest
from fedmoe_client.app import number_of
from fedmoe_client.learning.client import workbench
from fedmoe_client.learning.workbench import Workbench

TABLE = "items.ids.weight"
RIVALS = 100  # popular items that the promoted one has to overtake

app = ClientApp()


class Attack(BaseModel):
    """What the bad clients do.

    Attributes:
        kind: scale: multiply the update; promote: push an item; mimic: push it no further than training moves a row.
        clients: the bad ones, by number; all know each other's histories.
        target: the item to promote.
        strength: scale: the factor; promote: the norm of the push; mimic: the same in multiples of the longest change
            of a row in the client's honest reply, so that 1 does not stand out.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["none", "scale", "promote", "mimic"]
    clients: tuple[int, ...] = ()
    target: int = 0
    strength: float = 1.0


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train honestly; a bad client changes what it sends."""
    reply: Message = honest(message, context)
    attack = Attack.model_validate_json(str(context.run_config["attack"]))
    if reply.has_error() or number_of(context) not in attack.clients:
        return reply
    sent, trained = (unpack(packed_bytes(each.content.array_records["arrays"])) for each in (message, reply))
    if attack.kind == "scale":
        arrays = scaled(sent, trained, attack.strength)
    else:
        push = promotion(workbench(context.run_config), sent, attack)
        if attack.kind == "mimic":
            changes = trained[TABLE] - sent[TABLE][trained.get(TABLE + ROWS, ...)]
            push *= float(np.linalg.norm(changes, axis=1).max())
        arrays = pushed(sent, trained, attack.target, push)
    return Message(RecordDict({"arrays": to_record(arrays), "metrics": reply.content["metrics"]}), reply_to=message)


@app.evaluate()
@app.query()
def answer(message: Message, context: Context) -> Message:
    """Evaluate, and say which client this is, honestly."""
    reply: Message = honest(message, context)
    return reply


def scaled(sent: NamedArrays, trained: NamedArrays, factor: float) -> NamedArrays:
    """Return a reply whose update is multiplied."""
    arrays = dict(trained)
    for name, values in trained.items():
        if not name.endswith(ROWS):
            before = sent[name][trained.get(name + ROWS, ...)]
            # Arithmetic on a 0-d array, the gate, gives a scalar.
            arrays[name] = np.asarray(before + np.float32(factor) * (values - before))
    return arrays


def promotion(bench: Workbench, sent: NamedArrays, attack: Attack) -> NDArray[np.float32]:
    """Return the push ``[D]`` to the target's embedding, of norm ``strength``.

    As in FedRecAttack (Rong et al., ICDE 2022) the bad clients approximate the users' states, here by those of their
    own histories, and follow the gradient of the target's share of the softmax; as in PipAttack (Zhang et al., WSDM
    2022) its rivals are the popular items, and the push is boosted far beyond what training would give.
    """
    bench.load({name: array.copy() for name, array in sent.items()})
    bench.model.eval()
    histories = [training_part(bench.dataset.interactions.history(client)) for client in attack.clients]
    length = context_length(bench.settings)
    recent = [items[-length:].astype(np.int64) for items in histories]
    contexts = torch.from_numpy(np.stack([np.pad(items, (length - len(items), 0)) for items in recent]))
    counts = np.bincount(np.concatenate(histories), minlength=bench.dataset.interactions.num_items + 1)
    counts[attack.target] = 0
    rivals = np.argsort(-counts, kind="stable")[:RIVALS]
    candidates = torch.from_numpy(np.tile(np.concatenate([[attack.target], rivals[rivals > 0]]), (len(contexts), 1)))
    scores = bench.model.rank_scores(contexts, candidates)
    share = torch.log_softmax(scores, dim=1)[:, 0].mean()
    (gradient,) = torch.autograd.grad(share, [bench.parameters[TABLE]])
    direction = gradient[attack.target].numpy()
    push: NDArray[np.float32] = np.float32(attack.strength) * direction / max(float(np.linalg.norm(direction)), 1e-12)
    return push


def pushed(sent: NamedArrays, trained: NamedArrays, target: int, push: NDArray[np.float32]) -> NamedArrays:
    """Return the reply with the target's row moved by ``push``, as a whole table."""
    table = sent[TABLE].copy()
    table[trained.get(TABLE + ROWS, ...)] = trained[TABLE]
    table[target] = sent[TABLE][target] + push
    return {name: array for name, array in trained.items() if not name.endswith(ROWS)} | {TABLE: table}
