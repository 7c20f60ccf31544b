"""Everything of Flower that is not public: the one module to revisit when the pinned Flower version moves.

Written for Flower 1.39 to 1.42. All other modules of this package import from ``flwr.app``, ``flwr.clientapp`` and
``flwr.serverapp`` only.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message as make_message
from flwr.app.metadata import Metadata as Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import ServerApp
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.logger import console_handler
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

from fedmoe.errors import FailureKind, FedMoEError, reason_of
from fedmoe.settings import SimulationSettings
from fedmoe.wire import PACKED, STYPE, NamedArrays, pack, packed_size

FIRST_NODE_ID = 2  # Flower's node 0 is nobody, node 1 the server
PARTITION_ID: str = PARTITION_ID_KEY
NUM_PARTITIONS: str = NUM_PARTITIONS_KEY
Record = ArrayRecord | ConfigRecord | MetricRecord
RunConfig = dict[str, bool | int | float | str]


class ClientIds(Mapping[int, int]):
    """Node id -> client id of all nodes, without a table of millions of entries."""

    def __init__(self, num_clients: int) -> None:
        if num_clients < 1:
            raise FedMoEError(f"a simulation needs at least one client, not {num_clients}")
        self.clients = range(num_clients)  # all client ids, ascending
        self._nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + num_clients)

    def __getitem__(self, node_id: int) -> int:
        if node_id not in self._nodes:
            raise KeyError(node_id)
        return node_id - FIRST_NODE_ID

    def client_of(self, node_id: int) -> int:
        """Return the client id of the node that a message is addressed to. FedMoEError: there is no such node."""
        if node_id not in self._nodes:
            raise FedMoEError(
                f"a message is addressed to node {node_id}: the nodes are {self._nodes[0]} to {self._nodes[-1]}"
            )
        return node_id - FIRST_NODE_ID

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def values(self) -> range:  # type: ignore[override]
        """Return the client ids: looking each one up takes ten times as long."""
        return self.clients

    def node_of(self, client_id: int) -> int:
        """Return the node id of a client: the inverse, which also needs no table."""
        return FIRST_NODE_ID + client_id


def begin_run() -> Run:
    """Make a new run and register this process as its server, which ``Message(...)`` asks for when it is called."""
    run = Run.create_empty(run_id=uuid.uuid4().int >> 66)  # an identity only: nothing is computed from it
    run.primary_task_id = uuid.uuid4().int >> 66
    run.federation_id = NOOP_FEDERATION_ID
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run.run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    return run


def server_context(run: Run, run_config: RunConfig) -> Context:
    """Return the context that the ServerApp of ``run`` is called with."""
    return Context(
        run_id=run.run_id, node_id=SUPERLINK_NODE_ID, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )


def number_message(message: Message, message_id: str) -> None:
    """Give a message its id, which its public interface keeps read-only."""
    message.metadata.__dict__["_message_id"] = message_id


def error_reply(request: Message, kind: FailureKind, reason: str) -> Message:
    """Return a reply to ``request`` that carries an error instead of content."""
    return Message(Error(code=int(kind), reason=reason), reply_to=request)


def call_client(app: ClientApp, message: Message, context: Context) -> Message:
    """Execute one message on one client and return its reply.

    A client that raises, or returns something that is no reply to the message, gives an error reply. The private state
    of a client whose reply is an error is what it was before the call.
    """
    before = copy_records(context.state)
    try:
        reply = app(message, context)
        if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise TypeError(f"the client app returned {type(reply).__name__}, not a Message with reply_to=message")
    except (Exception, SystemExit) as error:  # whatever a client raises is its own failure, not its host's
        reply = error_reply(message, FailureKind.RAISED, reason_of(error))
    if reply.has_error():
        context.state = before
    return reply


def copy_records(records: RecordDict) -> RecordDict:
    """Copy a RecordDict down to, not including, the immutable bytes of its arrays.

    Whatever is changed in the copy - keys, arrays, lists in a ConfigRecord - leaves the original as it is. The cost
    does not depend on the size of the arrays.
    """
    return RecordDict({name: _copy_record(record) for name, record in records.items()})


def _copy_record(record: Record) -> Record:
    copy = record.copy()
    data: dict[str, Any] = copy.__dict__["_data"]
    for key, value in data.items():
        if isinstance(value, list):
            data[key] = list(value)
        elif isinstance(value, Array):
            data[key] = twin = object.__new__(type(value))  # the constructor takes 3 us to check types
            twin.__dict__.update(value.__dict__)
    return copy


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


class Unpacked(Array):
    """Named arrays as the one packed array of ``fedmoe.wire``: bytes are made of them when somebody asks for these."""

    unpacked: NamedArrays

    def __init__(self, arrays: NamedArrays) -> None:
        size = packed_size([(name, each.dtype, each.shape) for name, each in arrays.items()]) - len(PACKED)
        self.__dict__.update(dtype="uint8", shape=(size,), stype=STYPE, unpacked=arrays)

    @cached_property
    def data(self) -> bytes:  # type: ignore[override]  # who writes to an array's bytes makes an array
        """The packed arrays."""
        return pack(self.unpacked)


def unpacked_record(arrays: NamedArrays) -> ArrayRecord:
    """Return what ``fedmoe.wire.to_record`` does, not packed yet."""
    record = ArrayRecord()
    record[PACKED] = Unpacked(arrays)
    return record


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
    resources: SimulationSettings,
) -> None:
    """Run a ServerApp to its end in Flower's own simulation runtime (Ray must have been started)."""
    from flwr.simulation.run_simulation import _run_simulation  # a second of web and database packages

    _run_simulation(
        num_supernodes=num_clients,
        exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app=client_app,
        server_app=server_app,
        server_app_context=context,
        backend_name="ray",
        backend_config={
            "client_resources": {"num_cpus": resources.client_cpus, "num_gpus": resources.client_gpus},
            "init_args": {"logging_level": logging.ERROR, "log_to_driver": False},
        },
        run=run,
    )
