"""Server and client app together as in deployment, but in this process: numbers, resumption and what is on the wire."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from safetensors.numpy import load_file

from data.dataset import save_catalogue
from data.registry import load_dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings, to_run_config
from fedmoe.modalities import selected
from fedmoe.wire import packed_bytes, unpack
from fedmoe_client.app import app as client_app
from fedmoe_client.store.folder import StateFolder
from fedmoe_client.store.private import latest_private
from fedmoe_server.app import run
from fedmoe_server.deploy.deployed import Deployed
from fedmoe_server.report.run_folder import RESULT
from model.build import parameter_groups

USERS = 3
FIRST_NODE = 2**60
WARMUP = 2
WORDS = (
    f"dataset=synthetic data.synthetic.users={USERS} data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 "
    "max_seq_len=10 memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=0.7 num_rounds=6 name=three "
    f"warmup_rounds={WARMUP} evaluate_every=2 checkpoint_every=2 client_cpus=0.5 max_failed_rounds=1"
).split()


class Loopback(Grid):
    """Hands each message to the client app of its node, whose state lies in a folder. Nodes answer in any order.

    simulated: a node is a user of the data set instead, and its state in Flower's context, as the engines do it; that
    these agree with each other is for ``test_sim.py`` to show.
    """

    def __init__(
        self,
        folder: Path,
        session: int = 1,
        simulated: bool = False,
        users: int = USERS,
        words: Sequence[str] = tuple(WORDS),
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, session, 1
        self.folder, self.session, self.simulated = folder, session, simulated
        self.users = range(users)
        self.states: dict[int, RecordDict] = {user: RecordDict() for user in self.users}
        self.settings, _ = load_settings(list(words))
        self.dataset = load_dataset(self.settings)
        self.run_config = {**to_run_config(self.settings), "run_dir": str(folder / "run")}
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.fail: Callable[[Message], bool] = lambda message: False
        if not folder.exists():
            folder.mkdir(parents=True)
            known = self.dataset.interactions
            save_catalogue(self.dataset, folder / "catalogue")
            for user in self.users:
                lines = "".join(f"{item}\n" for item in known.item_ids[known.history(user)])
                (folder / f"history-{user}.txt").write_text(lines)
            clients = [
                {"node": FIRST_NODE + user, "client": user, "fingerprint": "", "key": self.admitted(user)}
                for user in self.users
            ]
            (folder / "clients.json").write_text(json.dumps(clients))

    def admitted(self, user: int) -> str:
        return f"key of {user}"

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *_: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [FIRST_NODE + user for user in self.users]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = [self._answer(message) for message in reversed(list(messages))]
        self.received += replies
        return replies

    def _answer(self, message: Message) -> Message:
        self.sent.append(message)
        if self.fail(message):
            return Message(Error(code=1, reason="the server is gone"), reply_to=message)
        user = message.metadata.dst_node_id - FIRST_NODE
        node, state = self.node_config(user), self.states[user]
        return client_app(message, Context(self.session, FIRST_NODE + user, node, state, dict(self.run_config)))

    def node_config(self, user: int) -> dict[str, bool | int | float | str]:
        if self.simulated:
            return {"partition-id": user}
        return {
            "partition-id": user,
            "history": str(self.folder / f"history-{user}.txt"),
            "catalogue": str(self.folder / "catalogue"),
            "state-dir": str(self.state_dir(user)),
            "warm": False,
        }

    def state_dir(self, user: int) -> Path:
        return self.folder / f"state-{user}"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def serve(self, resume: bool = False) -> Path:
        deployed = None if self.simulated else Deployed(self.folder / "clients.json", str(self.session))
        console = Console(file=io.StringIO())
        return run(self, self.settings, self.run_dir, self.run_dir if resume else None, console, deployed)


def arrays_of(run_dir: Path) -> dict[str, bytes]:
    checkpoint = sorted((run_dir / "checkpoints").glob("round-*"))[-1]
    return {
        f"{file.name}/{name}": array.tobytes()
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def private_of(grid: Loopback, user: int) -> dict[str, bytes]:
    store = StateFolder(grid.state_dir(user))
    (name,) = (path.stem for path in grid.state_dir(user).glob("private-*.state"))
    return {name: array.tobytes() for name, array in latest_private(store.load(name)).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Loopback:
    """A deployed run of three clients from beginning to end."""
    grid = Loopback(tmp_path_factory.mktemp("whole") / "deployment")
    grid.serve()
    return grid


def test_deployment_equals_simulation(whole: Loopback, tmp_path: Path) -> None:
    simulated = Loopback(tmp_path / "simulation", simulated=True)
    runs = [whole.run_dir, simulated.serve()]
    assert arrays_of(runs[0]) == arrays_of(runs[1])
    deployed_result, simulated_result = (json.loads((run_dir / RESULT).read_text()) for run_dir in runs)
    for split in ("validation", "test"):
        assert deployed_result[split] == simulated_result[split]
    assert not any(whole.states.values())  # nothing is left with Flower
    assert all(simulated.states.values())


def test_a_server_that_dies_goes_on_with_its_clients_where_the_checkpoint_was(whole: Loopback, tmp_path: Path) -> None:
    broken = Loopback(tmp_path / "deployment")
    broken.fail = lambda message: message.content.get("config", {}).get("server-round", 0) == 6
    with pytest.raises(FedMoEError, match="round 6"):
        broken.serve()
    assert json.loads((broken.run_dir / RESULT).read_text())["status"] == "failed"
    # The clients have trained in round 5, which the server has to do again: from its checkpoint after round 4.
    again = Loopback(tmp_path / "deployment", session=2)
    again.serve(resume=True)
    assert arrays_of(again.run_dir) == arrays_of(whole.run_dir)
    for user in range(USERS):
        assert private_of(again, user) == private_of(whole, user)


def test_the_server_needs_no_history(whole: Loopback, tmp_path: Path) -> None:
    grid = Loopback(tmp_path / "deployment")
    words = [word for word in WORDS if not word.startswith(("dataset=", "data.synthetic."))]
    words += ["dataset=catalogue", f"data_dir={grid.folder / 'catalogue'}"]
    grid.settings, _ = load_settings(words)
    grid.run_config |= to_run_config(grid.settings)
    assert arrays_of(grid.serve()) == arrays_of(whole.run_dir)


def test_nothing_private_is_on_the_wire(whole: Loopback) -> None:
    groups = parameter_groups(whole.settings, whole.dataset)
    shared = {name for group in selected(whole.settings.federation.shared, groups) for name in groups[group]}
    private = {name for names in groups.values() for name in names} - shared
    assert private
    copies: dict[str, set[bytes]] = {name: set() for name in private}
    trained = 0
    for reply in whole.received:
        assert set(reply.content) <= {"arrays", "metrics", "config"}
        names = {name for record in reply.content.array_records.values() for name in unpack(packed_bytes(record))}
        if reply.metadata.message_type == "train":
            trained += 1
        assert not names & private or _round_of(whole, reply) <= WARMUP
        for metrics in reply.content.metric_records.values():
            assert all(isinstance(value, int | float) for value in metrics.values())
        for config in reply.content.config_records.values():
            assert list(config) == ["client-id"]
    assert trained == 6 * 2
    for message in whole.sent:
        record = message.content.array_records.get("arrays")
        if record is not None and message.content["config"]["server-round"] > WARMUP:
            sent = unpack(packed_bytes(record))
            for name in private:
                copies[name].add(sent[name].tobytes())
    # The server sends its own copy along, and that has not moved by a bit since the warm-up.
    assert all(len(found) == 1 for found in copies.values())
    own = [private_of(whole, user) for user in range(USERS)]
    assert own[0] != own[1] != own[2] != own[0]
    everything = b"".join(_bytes(reply) for reply in whole.received if _round_of(whole, reply) > WARMUP)
    for values in own:
        assert not any(value in everything for value in values.values() if len(value) > 16)


def test_no_history_is_on_the_wire(whole: Loopback) -> None:
    known = whole.dataset.interactions
    everything = b"".join(_bytes(message) for message in [*whole.sent, *whole.received])
    for user in range(USERS):
        for kind in (np.int32, np.int64):
            assert known.history(user).astype(kind)[-4:].tobytes() not in everything


def _round_of(grid: Loopback, reply: Message) -> int:
    request = next(m for m in grid.sent if m.metadata.message_id == reply.metadata.reply_to_message_id)
    return int(request.content.get("config", {}).get("server-round", 0))


def _bytes(message: Message) -> bytes:
    return b"".join(array.data for record in message.content.array_records.values() for array in record.values())
