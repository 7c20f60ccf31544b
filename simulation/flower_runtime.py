"""Everything of Flower that is not public: the one module to revisit when the pinned Flower version moves.

Written for Flower 1.39. All other modules of this package import from ``flwr.app``, ``flwr.clientapp`` and
``flwr.serverapp`` only.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import (
    NUM_PARTITIONS_KEY,
    PARTITION_ID_KEY,
    SUPERLINK_NODE_ID,
    ErrorCode,
)
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.logger import console_handler
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

SERVER_NODE_ID: int = SUPERLINK_NODE_ID
PARTITION_ID: str = PARTITION_ID_KEY
NUM_PARTITIONS: str = NUM_PARTITIONS_KEY
CLIENT_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
HOST_DIED: int = ErrorCode.CLIENT_APP_CRASHED
Record = ArrayRecord | ConfigRecord | MetricRecord

__all__ = [
    "CLIENT_RAISED",
    "HOST_DIED",
    "NUM_PARTITIONS",
    "PARTITION_ID",
    "SERVER_NODE_ID",
    "Metadata",
    "Record",
    "Run",
    "begin_run",
    "copy_records",
    "error_reply",
    "make_message",
    "number_message",
    "quiet",
    "records_from_bytes",
    "records_to_bytes",
    "run_flower_runtime",
    "server_context",
]


def begin_run() -> Run:
    """Make a new run and register this process as its server, which ``Message(...)`` asks for when it is called."""
    run = Run.create_empty(run_id=uuid.uuid4().int >> 66)  # an identity only: nothing is computed from it
    run.primary_task_id = uuid.uuid4().int >> 66
    run.federation_id = NOOP_FEDERATION_ID
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run.run_id
    TaskIdentity.node_id = SERVER_NODE_ID
    return run


def server_context(run: Run, run_config: dict[str, bool | int | float | str]) -> Context:
    """Return the context that the ServerApp of ``run`` is called with."""
    return Context(
        run_id=run.run_id, node_id=SERVER_NODE_ID, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )


def number_message(message: Message, message_id: str) -> None:
    """Give a message its id, which its public interface keeps read-only."""
    message.metadata.__dict__["_message_id"] = message_id


def error_reply(request: Message, code: int, reason: str) -> Message:
    """Return a reply to ``request`` that carries an error instead of content."""
    return Message(Error(code=code, reason=reason), reply_to=request)


def copy_records(records: RecordDict) -> RecordDict:
    """Copy a RecordDict down to, not including, the immutable bytes of its arrays.

    Whatever is changed in the copy - keys, arrays, lists in a ConfigRecord - leaves the original as it is. The cost
    does not depend on the size of the arrays.
    """
    copy = RecordDict()
    for name, record in records.items():
        copy[name] = _copy_record(record)
    return copy


def _copy_record(record: Record) -> Record:
    if isinstance(record, ArrayRecord):
        arrays = record.copy()
        data: dict[str, Array] = arrays.__dict__["_data"]
        for key, array in data.items():
            twin = object.__new__(type(array))  # the constructor checks types for 3 us; thousands of arrays pass here
            twin.__dict__.update(array.__dict__)
            data[key] = twin
        return arrays
    values = record.copy()
    mutable: dict[str, Any] = values.__dict__["_data"]
    for key, value in mutable.items():
        if isinstance(value, list):
            mutable[key] = list(value)
    return values


def records_to_bytes(records: RecordDict) -> bytes:
    """Serialise a RecordDict in Flower's own wire format (protobuf, no pickle)."""
    data: bytes = recorddict_to_proto(records).SerializeToString(deterministic=True)
    return data


def records_from_bytes(data: bytes) -> RecordDict:
    """Inverse of ``records_to_bytes``. Raises ``ValueError`` (or protobuf's DecodeError) for other bytes."""
    proto = ProtoRecordDict.FromString(data)
    records = RecordDict()
    for item in proto.items:
        if item.WhichOneof("value") == "array_record":
            # Flower's own way checks and copies each array, which takes ten times as long.
            arrays = ArrayRecord()
            arrays.__dict__["_data"].update((entry.key, _array(entry.value)) for entry in item.array_record.items)
            records[item.key] = arrays
        else:
            records.update(recorddict_from_proto(ProtoRecordDict(items=[item])))
    return records


def _array(proto: ProtoArray) -> Array:
    array = object.__new__(Array)
    array.__dict__.update(dtype=proto.dtype, shape=tuple(proto.shape), stype=proto.stype, data=proto.data)
    return array


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """Within the block Flower writes nothing below ``level`` to the terminal."""
    before = console_handler.level
    console_handler.setLevel(max(level, before))
    try:
        yield
    finally:
        console_handler.setLevel(before)


def run_flower_runtime(
    server_app: ServerApp,
    client_app: ClientApp,
    num_clients: int,
    context: Context,
    run: Run,
    client_cpus: float,
    client_gpus: float,
) -> None:
    """Run a ServerApp to its end in Flower's own simulation runtime (Ray must have been started)."""
    _run_simulation(
        num_supernodes=num_clients,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_app,
        server_app=server_app,
        server_app_context=context,
        backend_name="ray",
        backend_config={
            "client_resources": {"num_cpus": client_cpus, "num_gpus": client_gpus},
            "init_args": {"logging_level": logging.ERROR, "log_to_driver": False},
        },
        run=run,
    )
