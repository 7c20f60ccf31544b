"""One message of the server, carried out on a device, in whatever process has torch loaded.

A client of a deployment has what a simulated one has not: perhaps a history of its own, a catalogue of its own, and a
folder in which it keeps its private parameters and the last global model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError, reason_of
from fedmoe_client.app import received
from fedmoe_client.device.node import Node
from fedmoe_client.device.padding import other_client
from fedmoe_client.learning.client import Answer, FedMoEClient, carry_out, workbench
from fedmoe_client.learning.private_reply import SUM_BITS
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.folder import State, StateFolder
from fedmoe_client.store.history import OwnHistories, read_histories
from fedmoe_client.store.identity import refuse_other
from fedmoe_client.store.private import GLOBAL, InContext, InFolder


@dataclass(frozen=True)
class Task:
    """A message and what belongs to it.

    Attributes:
        kind: ``train`` or ``evaluate``.
        arrays: all parameters, packed.
        config: see ``FedMoEClient``.
        node: the client's place on this machine.
        run_config: the run's settings.
        run: the run's name; the same when the run is resumed.
        extra: the message's other records, for a client of one's own.
        wanted: whether the node that asked still runs and can send the reply.
    """

    kind: str
    arrays: bytes
    config: Mapping[str, Any]
    node: Node
    run_config: Mapping[str, Any]
    run: str
    extra: RecordDict | None = None
    wanted: Callable[[], bool] = lambda: True


def perform(task: Task, state: RecordDict | None = None) -> Answer:
    """Carry out a message.

    state: Flower's context, where a client without a ``state_dir`` keeps its private parameters.

    Raises FedMoEError for arrays of another model, another catalogue than the server's, or a history that is too short.
    """
    bench = workbench(task.run_config, task.node.catalogue)
    if task.node.state_dir is not None:
        store = StateFolder(task.node.state_dir)
        with store.lock():
            client = _client_of(store, task, bench)
            answer = _carried_out(client, task)
        # The code of somebody else is not run on a history that nobody has.
        if task.node.padding and SUM_BITS in task.config and len(client.users) == 1 and bench.own_client is None:
            _do_the_rest(client, task)
        return answer
    private = InContext(RecordDict() if state is None else state)
    number = task.node.sole_number
    own = _own_histories(task.node, bench, number)
    return _carried_out(_of_kind(bench, own, number)(bench, number, private, own), task)


def _carried_out(client: FedMoEClient, task: Task) -> Answer:
    return carry_out(client, task.kind, task.arrays, task.config, task.extra)


def _do_the_rest(client: FedMoEClient, task: Task) -> None:
    """Work as long as with the longest history. A failure is logged, and fails nothing else."""
    try:
        _carried_out(other_client(client, task.kind), task)
    except Exception as error:
        logging.getLogger(__name__).warning("the answer's time may tell the history's length: %s", reason_of(error))


def _client_of(store: StateFolder, task: Task, bench: Workbench) -> FedMoEClient:
    """Return the client that keeps its private parameters in a state folder; the server's arrays are kept there."""
    number = store.number(task.node.number)
    own = _own_histories(task.node, bench, number)
    server = store.note("server")
    if server.get("run") == task.run:
        refuse_other(server["identity"], bench.identity)
    _keep_global(store, bench, task, received(bench, task.arrays))
    private = InFolder(
        store,
        bench.identity["model"],
        task.run,
        int(task.config["server-round"]),
        task.kind == "train",
        2 * (bench.settings.in_deployment().federation.checkpoint_every or 0),
        wanted=task.wanted,
    )
    client = _of_kind(bench, own, number)(bench, number, private, own)
    reach = max(bench.settings.model.memory_size, bench.settings.model.max_seq_len)
    names = {number: str(bench.dataset.interactions.user_ids[number])} if own is None else own.names
    private.memory = {names[user]: np.asarray(client.histories.history(user)[-reach:]) for user in client.users}
    return client


def _of_kind(bench: Workbench, own: OwnHistories | None, number: int) -> type[FedMoEClient]:
    """Return the class of a client: a folder of histories is a silo, also where one user has a history so far."""
    if own is None or own.users == [number] or bench.own_client is not None:
        return FedMoEClient
    from fedmoe_client.learning.silo import Silo

    return Silo


def _own_histories(node: Node, bench: Workbench, number: int) -> OwnHistories | None:
    """Return the node's own histories, None where it is a user of the data set."""
    if node.history is not None:
        return read_histories(node.history, number, bench.item_numbers, bench.settings.data.min_items)
    users = bench.dataset.interactions.num_users
    if not 0 <= number < users:
        known = f"the users 0 to {users - 1}" if users else "no users"
        raise FedMoEError(
            f"partition-id = {number}, but the data set has {known}: give history=FILE, or another number"
        )
    return None


def _keep_global(store: StateFolder, bench: Workbench, task: Task, arrays: list[NDArray[np.float32]]) -> None:
    """Keep the server's arrays for ``recommend``, unless they are there already."""
    digest = sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    shared = set(bench.names_in(tuple(task.config["shared"])))
    about = {
        "digest": digest.hexdigest(),
        "private": [name for name in bench.names if name not in shared],
        "identity": bench.identity,
        "settings": bench.settings.model_dump_json(),
    }
    if store.note(GLOBAL) != about:
        store.save(GLOBAL, State(dict(zip(bench.names, arrays, strict=True)), about))
        store.keep_note(GLOBAL, about)
    places = {"history": task.node.history, "catalogue": task.node.catalogue}
    store.keep_note("node", {name: None if path is None else str(path) for name, path in places.items()})
