"""A small federation without Ray, torch or data: a grid in this process whose clients do a little numpy arithmetic."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console

from fedmoe.modalities import GROUPS
from fedmoe.settings import Settings
from fedmoe.wire import packed_bytes, to_record, unpack
from fedmoe_server.report.run_folder import CHECKPOINTS
from fedmoe_server.report.tracking import Tracker
from fedmoe_server.rounds.checkpoints import CheckpointStore
from fedmoe_server.rounds.clients import ClientDirectory
from fedmoe_server.rounds.exchange import KnownClients
from fedmoe_server.rounds.loop import ServerLoop
from fedmoe_server.rounds.record import LoopState
from fedmoe_server.rounds.strategy import layered_strategy

FIRST_NODE = 1_000
PARAMETERS = {"embedding": ["item"], "backbone": ["body"], "gate": ["gate"]}
SHAPES: dict[str, tuple[int, ...]] = {"item": (5, 3), "body": (3,), "gate": ()}


def model_arrays(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> ArrayRecord:
    rng = np.random.default_rng(7)
    return ArrayRecord({k: Array(np.asarray(rng.normal(size=s), dtype=np.float32)) for k, s in shapes.items()})


class FakeGrid(Grid):
    """Executes the messages at once. ``fail`` and ``score`` change what the clients do."""

    def __init__(self, clients: int = 10) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.clients = clients
        self.gates: dict[int, np.float32] = {}  # the clients' private state
        self.fail: Callable[[int, str, int], str | None] = lambda client, stage, round_: None
        self.score: Callable[[int], float] | None = None
        self.silent: set[int] = set()
        self.sent: list[tuple[str, int, int, str]] = []  # stage, client, round, split

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, *rest: Any) -> Message:
        return Message(content, dst_node_id, message_type)

    def get_node_ids(self) -> Iterable[int]:
        return [FIRST_NODE + client for client in range(self.clients)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        asked = [m for m in messages if m.metadata.dst_node_id - FIRST_NODE not in self.silent]
        return [self._answer(message) for message in reversed(asked)]  # order of arrival is not order of clients

    def _answer(self, message: Message) -> Message:
        client, stage = message.metadata.dst_node_id - FIRST_NODE, message.metadata.message_type
        if stage == "query":
            return Message(RecordDict({"config": ConfigRecord({"client-id": client})}), reply_to=message)
        config = message.content["config"]
        round_ = int(config["server-round"])
        self.sent.append((stage, client, round_, str(config.get("split", ""))))
        reason = self.fail(client, stage, round_)
        if reason is not None:
            return Message(Error(code=1, reason=reason), reply_to=message)
        arrays = {name: array.copy() for name, array in unpack(packed_bytes(message.content["arrays"])).items()}
        private = "gate" not in config["shared"]
        if private and client in self.gates:
            arrays["gate"] = np.asarray(self.gates[client])
        content = self._train(client, round_, arrays, private) if stage == "train" else self._evaluate(round_, arrays)
        return Message(RecordDict(content), reply_to=message)

    def _train(self, client: int, round_: int, arrays: dict[str, Any], private: bool) -> dict[str, Any]:
        rng = np.random.default_rng([client, round_])
        new = {k: np.asarray(0.9 * v + 0.1 * rng.normal(size=v.shape), dtype=np.float32) for k, v in arrays.items()}
        new["item"] += np.float32(0.01) * new["gate"]  # what is shared depends on what is private
        if private:
            self.gates[client] = new.pop("gate")[()]
        metrics = {
            "num-examples": 1 + client % 3,
            "loss": float(np.square(new["item"]).mean()),
            "gate": float(arrays["gate"]),
            "router-visual": 0.4,
            "router-text": 0.6,
        }
        return {
            "arrays": to_record(new),
            "metrics": MetricRecord(metrics),
        }

    def _evaluate(self, round_: int, arrays: dict[str, Any]) -> dict[str, Any]:
        score = self.score(round_) if self.score is not None else float(np.exp(-np.square(arrays["body"]).sum()))
        names = ("hr@10", "ndcg@10")
        values = {name: score / (1 + i) for i, name in enumerate(names)}
        values |= {f"global-{name}": 0.9 * value for name, value in values.items()}
        return {"metrics": MetricRecord({"num-examples": 1, **values})}


class SavingGrid(FakeGrid):
    """A grid that can save its clients' private state, and that knows its client ids."""

    def client_ids(self) -> Mapping[int, int]:
        return {FIRST_NODE + client: client for client in range(self.clients)}

    def save_clients(self, folder: Path) -> None:
        np.savez(folder / "gates.npz", clients=list(self.gates), gates=list(self.gates.values()))

    def load_clients(self, folder: Path) -> None:
        saved = np.load(folder / "gates.npz")
        self.gates = {int(k): np.float32(v) for k, v in zip(saved["clients"], saved["gates"], strict=True)}


def make_settings(**federation: Any) -> Settings:
    values: dict[str, Any] = {
        "num_rounds": 6,
        "client_fraction": 0.5,
        "warmup_rounds": 2,
        "evaluate_every": 2,
        "evaluate_clients": 4,
        "checkpoint_every": 2,
        "patience": 0,
    }
    return Settings.model_validate({"name": "test", "federation": values | federation})


def quiet_console() -> Console:
    return Console(file=io.StringIO(), width=200)


def make_loop(
    grid: Grid, run_dir: Path, settings: Settings, state: LoopState | None = None, console: Console | None = None
) -> ServerLoop:
    """Put a loop together as the app does, around Flower's FedAdam or whatever the settings name."""
    run_dir.mkdir(parents=True, exist_ok=True)
    groups = {group: PARAMETERS.get(group, []) for group in GROUPS}
    directory = KnownClients() if hasattr(grid, "client_ids") else ClientDirectory(wait_seconds=0.0)
    strategy, partial, _, sums = layered_strategy(settings, groups, grid, directory.client_ids, deployed=False)
    tracker = Tracker(run_dir, settings, state.history if state else (), console or quiet_console())
    store = CheckpointStore(run_dir / CHECKPOINTS)
    return ServerLoop(grid, strategy, partial, settings, directory, tracker, store, sums=sums)


@pytest.fixture(scope="session")
def fakes() -> Any:
    """The names of this module: test modules cannot import it by name under every import mode of pytest."""

    class Fakes:
        pass

    for name in ("FakeGrid", "SavingGrid", "model_arrays", "make_settings", "make_loop", "quiet_console"):
        setattr(Fakes, name, staticmethod(globals()[name]))
    Fakes.PARAMETERS = PARAMETERS  # type: ignore[attr-defined]
    Fakes.FIRST_NODE = FIRST_NODE  # type: ignore[attr-defined]
    return Fakes
