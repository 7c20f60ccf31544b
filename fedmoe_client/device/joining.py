"""A client joins a run: it is told what the server is, and says which client it is, or why it will not.

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.dataset import Dataset
from fedmoe.loading import from_run_config
from fedmoe_client.device.node import Node, Value
from fedmoe_client.store.folder import StateFolder
from fedmoe_client.store.history import read_histories
from fedmoe_client.store.identity import described, item_numbers, refuse_other, refuse_other_version
from fedmoe_client.store.private import InFolder


def join(server: Mapping[str, Any], node: Node, run_config: Mapping[str, Value], run: str, session: str) -> int:
    """Return the client's number.

    server: its identity (see ``fedmoe_client.store.identity``) and the ``round`` that the run goes on from.
    run: the run's name, the same when it is resumed; session: another one then.

    Raises FedMoEError if version, catalogue, features or model differ, or if the history is too short yet. The server
    asks again later, so a history that has grown by then is welcome.
    """
    settings = from_run_config(run_config)
    dataset, identity = described(settings.model_dump_json(), node.catalogue)
    refuse_other_version(str(server.get("fedmoe", "")), node.version)
    refuse_other(server, identity)
    if node.state_dir is None:
        _check_history(node, node.sole_number, dataset, settings.data.min_items)
        return node.sole_number
    store = StateFolder(node.state_dir)
    with store.lock():
        number = store.number(node.number)
        _check_history(node, number, dataset, settings.data.min_items)
        note = {"run": run, "session": session, "identity": {key: server[key] for key in identity if key in server}}
        if store.note("server").get("session") != session:  # else the node was started again in the middle of it
            done = int(server.get("round", 0))
            InFolder(store, identity["model"], run, done, False, 0).go_back(done)
        store.keep_note("server", note)
    if node.warm:
        from fedmoe_client.device.resident_call import prepare

        prepare(node.state_dir, node.catalogue, run_config, node.keep)
    return number


def number_on(node: Node) -> int:
    """Return the number of the client on a node."""
    return node.sole_number if node.state_dir is None else StateFolder(node.state_dir).number(node.number)


def _check_history(node: Node, number: int, dataset: Dataset, least: int) -> None:
    if node.history is not None:
        read_histories(node.history, number, item_numbers(dataset), least)
