"""The Flower ClientApp: takes a message apart, has it carried out, and packs the answer under the same names.

Flower starts a process for each message in deployment, so nothing heavy is imported here: torch, the model and the data
come with ``learning.client``, in this process (a simulation's actor keeps them) or in the node's resident one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmoe.deployment.logs import log_about
from fedmoe.errors import FailureKind, FedMoEError, reason_of, told_reason
from fedmoe.secure.phases import PHASES, RECORD
from fedmoe.wire import NamedArrays, Packed, packed_bytes, packed_in, to_record, unpack

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedmoe_client.learning.workbench import Workbench

NOT_EXTRA = ("arrays", "config", RECORD)  # records of ours; all others are for a client of one's own


def answer_failures(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Answer with an error where the client fails; its private state is then what it was before.

    A simulated client's error says why. A real one's says no more than may leave the device; its log says the rest.
    """
    if not simulated(context):
        log_about(**_about(context))
    before = RecordDict(dict(context.state.items()))
    try:
        return call_next(message, context)
    except Exception as error:
        context.state = before
        if simulated(context):
            return Message(Error(FailureKind.RAISED, reason_of(error)), reply_to=message)
        traced = not isinstance(error, FedMoEError)
        logging.getLogger(__name__).error("the client failed: %s", reason_of(error), exc_info=traced)
        return Message(Error(FailureKind.RAISED, told_reason(error)), reply_to=message)


app = ClientApp(mods=[answer_failures])


def simulated(context: Context) -> bool:
    """Return whether a simulation's launcher has said that the run is one; a run without a word is a real one."""
    return context.run_config.get("simulated") is True


def number_of(context: Context) -> int:
    """Return the number of a simulated client, which is its user in the data set."""
    return int(context.node_config["partition-id"])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the client's history; answer with the shared arrays and the metrics."""
    return answered(message, *_carried_out(message, context))


def answered(message: Message, arrays: NamedArrays | None, metrics: dict[str, Any], records: RecordDict) -> Message:
    """Return a reply; arrays: None where there are none; records: beside arrays and metrics."""
    packed = {} if arrays is None else {"arrays": to_record(arrays)}
    return _reply(message, {**dict(records), **packed, "metrics": MetricRecord(metrics)})


def extra_of(message: Message) -> RecordDict:
    """Return a message's records beside the arrays and the config, for a client of one's own."""
    return RecordDict({name: record for name, record in message.content.items() if name not in NOT_EXTRA})


def received(bench: Workbench, packed: Packed) -> list[NDArray[np.float32]]:
    """Return the server's packed arrays in the model's order, to be read only. FedMoEError: they are another model's.

    The clients of a round that share a process get the very same ones, which are unpacked for the first of them.
    """
    if bench.received is None or bench.received[0] is not packed:
        # Bytes are copied, since torch warns of memory that must not be written to. So are arrays of a simulation where
        # the code of somebody else sees them.
        if isinstance(packed, bytes):
            arrays = unpack(bytearray(packed))
        else:
            arrays = packed if bench.own_client is None else {name: each.copy() for name, each in packed.items()}
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != bench.shapes:
            bench.refuse(shapes)
        bench.received = packed, [arrays[name] for name in bench.names]
    return bench.received[1]


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Rank the client's held-out item; answer with the metrics."""
    return answered(message, *_carried_out(message, context))


def secure_phase(message: Message, context: Context) -> Message:
    """Answer one phase of a secure sum, in which the client's own answer is added up under masks."""
    if simulated(context):
        raise FedMoEError("simulated clients are added up as they are: secure sums are for real ones")
    from fedmoe_client.device.secure import answer_phase

    return _reply(message, answer_phase(message, context, lambda: _carried_out(message, context)))


for _phase in PHASES:
    app.train(_phase)(secure_phase)
    app.evaluate(_phase)(secure_phase)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell the server which client this node is, so that cohorts do not depend on Flower's random node ids.

    In deployment the server says what it is at first; a client that differs, or that is not ready, refuses.
    """
    if simulated(context):
        return _reply(message, {"config": ConfigRecord({"client-id": number_of(context)})})
    from fedmoe_client.device.joining import join, number_on
    from fedmoe_client.device.node import node_from

    node, server = node_from(context.node_config), message.content.config_records.get("config")
    if server is not None and "model" in server:
        if sees := context.run_config.get("sees"):
            logging.getLogger(__name__).warning("run %s: %s", context.run_id, sees)
        number = join(dict(server), node, context.run_config, _run_name(context), str(context.run_id))
    else:
        number = number_on(node)
    return _reply(message, {"config": ConfigRecord({"client-id": number})})


def _carried_out(message: Message, context: Context) -> tuple[NamedArrays | None, dict[str, Any], RecordDict]:
    """Return the arrays (None after most evaluations), metrics and further records of a client's answer."""
    kind, _, phase = message.metadata.message_type.partition(".")
    config = dict(message.content.config_records["config"])
    record = message.content.array_records["arrays"]
    extra = extra_of(message)
    if simulated(context):
        from fedmoe_client.learning.client import FedMoEClient, carry_out, workbench
        from fedmoe_client.store.private import InContext

        bench, private = workbench(context.run_config), InContext(context.state)
        client = FedMoEClient(bench, number_of(context), private, simulated=True)
        return carry_out(client, kind, packed_in(record), config, extra)
    from fedmoe_client.device.node import node_from

    node, packed = node_from(context.node_config), packed_bytes(record)
    if not phase:
        node.accept_plain()
    if node.warm:
        from fedmoe_client.device.resident_call import perform_there

        run = context.run_config, _run_name(context)
        return perform_there(kind, packed, config, context.node_config, *run, extra, _about(context))
    from fedmoe_client.device.task import Task, perform

    return perform(Task(kind, packed, config, node, context.run_config, _run_name(context), extra), context.state)


def _about(context: Context) -> dict[str, Any]:
    """Return what the log's lines are about."""
    client, as_json = context.node_config.get("partition-id"), context.run_config.get("json_logs") is True
    return {"as_json": as_json, "run": str(context.run_id), "client": client}


def _run_name(context: Context) -> str:
    """Return what a run and its resumption have in common."""
    return str(context.run_config.get("run_dir") or context.run_id)


def _reply(message: Message, content: dict[str, Any]) -> Message:
    return Message(content=RecordDict(content), reply_to=message)
