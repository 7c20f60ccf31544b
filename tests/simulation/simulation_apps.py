"""Small numpy apps for the tests of the engines. What a client does is steered by the message's config."""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

app = ClientApp()
not_an_app = 3


def listed(config: ConfigRecord, key: str, client_id: int) -> bool:
    """Whether the config names this client under ``key``."""
    value = config.get(key, [])
    return isinstance(value, list) and client_id in value


@app.train()
def train(message: Message, context: Context) -> Message:
    """Add noise drawn from (client, round) to the arrays; count visits in the private state."""
    config = message.content.config_records["config"]
    client_id = int(context.node_config["partition-id"])
    arrays = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
    if not listed(config, "stateless", client_id):
        kept = context.state.get("private", ArrayRecord({"visits": Array(np.zeros(1, np.int64))}))
        kept["visits"] = Array(kept["visits"].numpy() + 1)
        context.state["private"] = kept
    if listed(config, "empty", client_id):
        del context.state["private"]
    if listed(config, "raise", client_id):
        raise RuntimeError("out of\nluck")
    if listed(config, "answer", client_id):
        return Message(Error(code=101, reason="no wish"), reply_to=message)
    if listed(config, "exit", client_id):
        os._exit(1)
    if listed(config, "exit_once", client_id) and not os.path.exists(str(config["marker"])):
        open(str(config["marker"]), "w").close()
        os._exit(1)
    if listed(config, "leave", client_id):
        sys.exit(3)
    if listed(config, "sleep", client_id):
        time.sleep(float(config["seconds"]))
    if listed(config, "nothing", client_id):
        return None  # type: ignore[return-value]
    if listed(config, "spoil", client_id):
        spoil(message)
    rng = np.random.default_rng([client_id, int(config["server-round"])])
    arrays = {name: value + rng.normal(size=value.shape).astype(value.dtype) for name, value in arrays.items()}
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
            "metrics": MetricRecord({"num-examples": client_id + 1, "visits": visits(context), "process": os.getpid()}),
        }
    )
    if listed(config, "lock", client_id):
        content.__dict__["lock"] = threading.Lock()
    return Message(content, reply_to=message)


def train_stack(messages: Sequence[Message], contexts: Sequence[Context], reduce: bool) -> list[Message]:
    """What ``train`` does, for many clients at once."""
    replies = [train(message, context) for message, context in zip(messages, contexts, strict=True)]
    if not reduce:
        return [reply for reply in reversed(replies) if reply is not None]
    summing = Summing()
    for reply in replies:
        summing.add(reply)
    return summing.replies()


class Summing:
    """A reducer: the sums of the arrays and of the metrics, in double precision."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.metrics: Counter[str] = Counter()
        self.first: Message | None = None
        self.errors: list[Message] = []

    def add(self, reply: Message) -> None:
        if reply.has_error():
            self.errors.append(reply)
            return
        self.first = self.first or reply
        metrics = dict(reply.content["metrics"])
        self.metrics.update({"num-clients": 1} | metrics)
        for name, array in reply.content["arrays"].items():
            self.arrays[name] = self.arrays.get(name, 0) + array.numpy().astype(np.float64)

    def replies(self) -> list[Message]:
        if self.first is None:
            return self.errors
        arrays = ArrayRecord({name: Array(value) for name, value in self.arrays.items()})
        merged = copy.copy(self.first)
        merged.content = RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(self.metrics))})
        return [merged, *self.errors]


class Refusing(Summing):
    """A reducer that breaks."""

    def add(self, reply: Message) -> None:
        raise ValueError("no more of these")


def visits(context: Context) -> int:
    """Read the counter in the private state."""
    return int(context.state["private"]["visits"].numpy()[0]) if "private" in context.state else 0


def spoil(message: Message) -> None:
    """Change everything in a message that can be changed in place."""
    record = message.content.array_records["arrays"]
    for array in record.values():
        array.data = Array(np.full(array.shape, np.nan, np.float32)).data
    record["extra"] = Array(np.zeros(1))
    message.content.config_records["config"]["words"].append("spoilt")
    message.content.config_records["config"]["server-round"] = 99


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Tell what the client has: its visits, the run config, the words sent, and the process it lives in."""
    config = ConfigRecord(
        {
            "client-id": int(context.node_config["partition-id"]),
            "clients": int(context.node_config["num-partitions"]),
            "visits": visits(context),
            "colour": str(context.run_config["colour"]),
            "process": os.getpid(),
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "heavy": sorted({"torch"} & set(sys.modules)),
        }
    )
    return Message(RecordDict({"config": config}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer with the client id."""
    content = RecordDict({"config": ConfigRecord({"client-id": int(context.node_config["partition-id"])})})
    return Message(content, reply_to=message)


def start_arrays() -> ArrayRecord:
    """The model: two float32 arrays."""
    return ArrayRecord(
        {
            "w": Array(np.linspace(0, 1, 300, dtype=np.float32).reshape(30, 10)),
            "b": Array(np.zeros(4, np.float32)),
        }
    )


def requests(nodes: list[int], message_type: str = "train", **config: object) -> list[Message]:
    """One message for each node, all of one content."""
    record = ConfigRecord({"server-round": 1, "words": ["a"], **config})  # type: ignore[dict-item]
    content = RecordDict({"arrays": start_arrays(), "config": record})
    return [Message(content, node, message_type) for node in nodes]


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Two rounds of averaging in the order of the client ids; the outcome goes to the file named in the run config."""
    clients = int(context.run_config["clients"])
    while len(nodes := list(grid.get_node_ids())) < clients:
        time.sleep(0.05)
    replies = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])
    client_of = {reply.metadata.src_node_id: int(reply.content["config"]["client-id"]) for reply in replies}
    arrays = start_arrays()
    failures: list[str] = []
    counted: list[int] = []
    processes: list[int] = []
    for server_round in (1, 2):
        config = ConfigRecord({"server-round": server_round, "raise": [5] if server_round == 1 else []})
        content = RecordDict({"arrays": arrays, "config": config})
        answers = list(grid.send_and_receive([Message(content, node, "train") for node in nodes]))
        answers.sort(key=lambda reply: client_of[reply.metadata.src_node_id])
        failures += [str(reply.error.reason) for reply in answers if reply.has_error()]
        good = [reply.content for reply in answers if reply.has_content()]
        counted += [int(content["metrics"]["visits"]) for content in good]
        processes += [int(content["metrics"]["process"]) for content in good]
        means = {n: np.mean([content["arrays"][n].numpy() for content in good], axis=0) for n in arrays}
        arrays = ArrayRecord({name: Array(value) for name, value in means.items()})
    np.savez(
        str(context.run_config["out"]),
        failures=np.array(failures),
        visits=np.array(counted),
        processes=np.array(processes),
        **{name: array.numpy() for name, array in arrays.items()},
    )
