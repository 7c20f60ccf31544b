"""The Flower ClientApp: unpacks a message, calls the NumPyClient, and packs what it returns under the same names."""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from errors import FedMoEError
from fedmoe_client.client import FedMoEClient
from fedmoe_client.state import PrivateParameters, packed
from fedmoe_client.workbench import workbench

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the client's history; answer with the shared arrays and the metrics."""
    client = _client(context)
    arrays, config = _unpack(client, message)
    trained, examples, metrics = client.fit(arrays, config)
    names = client.workbench.names_in(config["shared"])
    record = packed(dict(zip(names, trained, strict=True)))
    return _reply(message, {"arrays": record, "metrics": _metrics(examples, metrics)})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Rank the client's held-out item; answer with the metrics."""
    client = _client(context)
    arrays, config = _unpack(client, message)
    _, examples, metrics = client.evaluate(arrays, config)
    return _reply(message, {"metrics": _metrics(examples, metrics)})


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell the server which client this node is, so that cohorts do not depend on Flower's random node ids."""
    return _reply(message, {"config": ConfigRecord({"client-id": int(context.node_config["partition-id"])})})


def _client(context: Context) -> FedMoEClient:
    bench = workbench(context.run_config)
    user, users = int(context.node_config["partition-id"]), bench.dataset.interactions.num_users
    if not 0 <= user < users:
        raise FedMoEError(f"partition-id = {user}, but the data set has the users 0 to {users - 1}")
    return FedMoEClient(bench, user, PrivateParameters(context.state))


def _unpack(client: FedMoEClient, message: Message) -> tuple[list[Any], dict[str, Any]]:
    """Return the arrays in the model's order, and the config; refuse another model's arrays by name."""
    record = message.content.array_records["arrays"]
    client.workbench.check({name: array.shape for name, array in record.items()})
    return client.workbench.decode(record), dict(message.content.config_records["config"])


def _metrics(examples: int, metrics: dict[str, Any]) -> MetricRecord:
    return MetricRecord({"num-examples": examples, **metrics})


def _reply(message: Message, content: dict[str, Any]) -> Message:
    return Message(content=RecordDict(content), reply_to=message)
