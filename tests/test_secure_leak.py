"""All that a server gets of single clients in a run of secure sums says nothing of what a user has met.

The server's log is read as if masks were not there: each masked vector as the sum over its one client. The same attack
on the same run with masks of zeros, which are plain updates, must read the histories.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray
from test_deployed_run import FIRST_NODE
from test_secure_run import SecureLoopback

import fedmoe.secure.masks
from benchmarks.attacks.clients import TABLE
from benchmarks.attacks.leaks import auc, norm, sign, touched
from data.sampling import training_part
from fedmoe.errors import FedMoEError
from fedmoe.secure.phases import PHASES
from fedmoe.secure.wire import from_bytes
from fedmoe.sums.terms import Terms
from fedmoe.sums.total import COUNTS, NUMBERS
from fedmoe.sums.vectors import Layout, from_vector
from fedmoe.wire import ROWS

USERS, ITEMS, ROUNDS = 56, 800, 4
LEAKY = (
    *(f"data.synthetic.items={ITEMS}", "data.synthetic.mean_length=300", "max_seq_len=50", "memory_size=50"),
    *(
        "max_windows=0",
        "local_epochs=1",
        "num_negatives=2",
        "item_representation=id",
        "evaluate_every=0",
        "warmup_rounds=9",
    ),
)
FAILS, MET = 7, "a-film-that-client-7-has-met"  # its history cannot be read any more in round 2


class Clock:
    """The time of a device that does nothing else, on which waiting costs nothing."""

    def __init__(self) -> None:
        self._slept = 0.0

    def monotonic(self) -> float:
        return time.thread_time() + self._slept

    def sleep(self, seconds: float) -> None:
        self._slept += seconds


class Log(SecureLoopback):
    """A server that keeps all messages. Its run ends with the first evaluation: the second says nothing else.

    node: what all clients are told when they are started; took: kind, user and seconds of each answer.
    """

    def __init__(self, folder: Path, users: int, *words: str, node: dict[str, Any] | None = None) -> None:
        super().__init__(folder, *LEAKY, f"data.synthetic.users={users}", *words, users=users)
        self.node = lambda user: {"answer-after": 1} if node is None else node
        self.clock, self.took = Clock(), list[tuple[str, int, float]]()
        begins = ("evaluate.keys", "evaluate.masked")
        self.fail = lambda message: self.evaluated and message.metadata.message_type in begins
        self.evaluated = False

    def _answer(self, message: Message) -> Message:
        user, kind = message.metadata.dst_node_id - FIRST_NODE, message.metadata.message_type
        self.evaluated |= kind == "evaluate.unmasking"
        if user == FAILS and kind == "train.masked" and self.round == 2:
            (self.folder / f"history-{user}.txt").write_text(f"{MET}\n" * 9)
        begun = self.clock.monotonic()
        reply = super()._answer(message)
        if reply.has_content():
            self.took.append((kind, user, self.clock.monotonic() - begun))
        return reply

    def serve(self, resume: bool = False) -> Path:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(FedMoEError, match="test"):
            patch.setattr("fedmoe_client.device.secure.time", self.clock)
            super().serve()
        return self.run_dir

    def met(self, user: int) -> NDArray[np.bool_]:
        return np.isin(np.arange(1, ITEMS + 1), training_part(self.dataset.interactions.history(user)))

    def replies(self, kind: str) -> Iterator[tuple[int, Message]]:
        for reply in self.received:
            if reply.metadata.message_type == kind:
                yield reply.metadata.src_node_id - FIRST_NODE, reply

    def read(self, kind: str) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """Yield client and what its vector says if it is taken for a sum."""
        asked = next(m for m in self.sent if m.metadata.message_type == kind)
        terms = Terms.of_config(dict(asked.content.config_records["config"]))
        for user, reply in self.replies(kind):
            if reply.has_content():
                record = reply.content.config_records["secure"]
                told = json.loads(str(record["layout"]))
                shapes = {name: tuple(shape) for name, *shape in told["shapes"]}
                layout = Layout(shapes, tuple(told["tables"]), tuple(told["metrics"]))
                yield user, from_vector(from_bytes(record["words"], terms.ring_bits), layout, terms)


def attacked(log: Log) -> dict[str, float]:
    """Return the AUC of "did this user meet this item" over all pairs of all rounds, by score."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    known = []
    for user, said in log.read("train.masked"):
        table, counts = np.zeros((ITEMS + 1, said[TABLE].shape[1])), np.zeros(ITEMS + 1)
        table[said[TABLE + ROWS]] = said[TABLE].astype(np.int32)  # numbers around 0
        counts[said[TABLE + ROWS]] = said[TABLE + COUNTS]
        scores = {score.__name__: score(table[None])[1:] for score in (touched, norm, sign)}
        for name, each in (scores | {"counts": counts[1:]}).items():
            found.setdefault(name, []).append(np.asarray(each, np.float64))
        known.append(log.met(user))
    return {name: auc(np.concatenate(scores), np.concatenate(known)) for name, scores in found.items()}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    made = Log(tmp_path_factory.mktemp("leak") / "run", USERS, "client_fraction=0.5", f"num_rounds={ROUNDS}")
    made.serve()
    return made


def test_masked_vectors_say_nothing_of_a_history(log: Log) -> None:
    found = attacked(log)
    looks = [user for user, _ in log.read("train.masked")]
    assert len(set(looks)) >= 50 and len(looks) >= ROUNDS * (USERS // 2 - 1)
    # What is scored is noise, and the AUC of so many pairs has this deviation.
    met = np.concatenate([log.met(user) for user in looks])
    assert (1 / (12 * met.sum() * (1 - met.mean()))) ** 0.5 < 0.0027
    assert all(0.49 < value < 0.51 for value in found.values()), found


def test_the_same_attack_reads_updates_without_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = fedmoe.secure.masks.stream
    monkeypatch.setattr(fedmoe.secure.masks, "stream", lambda *words: draw(*words) * 0)
    plain = Log(tmp_path / "run", 12, "num_rounds=1")
    plain.serve()
    found = attacked(plain)
    assert min(found.values()) > 0.95, found


def test_neither_do_metrics_sizes_and_errors(log: Log) -> None:
    # The metrics of an evaluation are masked digits, each uniform in the ring.
    digits = np.concatenate([said[NUMBERS].ravel() for _, said in log.read("evaluate.masked")])
    bits = int(digits.max()).bit_length()
    assert len(digits) > USERS and abs(digits.mean() / 2**bits - 0.5) < 5 / (12 * len(digits)) ** 0.5
    lengths = [len(training_part(log.dataset.interactions.history(user))) for user in range(USERS)]
    assert max(lengths) > 2 * min(lengths)
    kinds = {message.metadata.message_type for message in log.sent} - {"query"}
    assert kinds == {f"{kind}.{phase}" for kind in ("train", "evaluate") for phase in PHASES}
    for kind in kinds:
        sizes: dict[str, set[int]] = {}
        for _, reply in log.replies(kind):
            for name, value in reply.content.config_records["secure"].items() if reply.has_content() else ():
                sizes.setdefault(name, set()).add(len(value))  # type: ignore[arg-type]
        for name, found in sizes.items():
            # The same for all, but for a few digits of client ids, and of shares and signatures that are drawn.
            assert max(found) - min(found) <= (0 if name in ("words", "layout") else max(8, 0.02 * max(found))), (
                kind,
                name,
            )
    errors = {reply.error.reason for reply in log.received if reply.has_error()}
    assert errors == {"FedMoEError: see the client's own log", "the server is gone"}


def time_tells(log: Log, kind: str, digits: int) -> float:
    """Return the AUC of "did this user meet this item" by how long an answer took, in seconds of so many digits."""
    took = [(user, round(seconds, digits)) for each, user, seconds in log.took if each == kind]
    scores = np.concatenate([np.full(ITEMS, seconds) for _, seconds in took])
    return auc(scores, np.concatenate([log.met(user) for user, _ in took]))


@pytest.mark.parametrize("kind", ["train.masked", "evaluate.masked"])
def test_neither_does_time(log: Log, kind: str) -> None:
    took = {name: [seconds for each, _, seconds in log.took if each == name] for name in (kind, "train.unmasking")}
    assert len({user for each, user, _ in log.took if each == kind}) >= 50
    assert min(took[kind]) >= 1 > min(took["train.unmasking"])
    # What comes after the waiting has nothing to do with the history; its milliseconds would be noise.
    assert abs(time_tells(log, kind, 1) - 0.5) < 0.01


def test_time_tells_where_a_client_works_no_longer_than_its_history_asks(tmp_path: Path) -> None:
    unpadded = Log(tmp_path / "run", 20, "num_rounds=1", node={"padding": False, "answer-after": 0})
    unpadded.serve()
    assert time_tells(unpadded, "train.masked", 4) > 0.55
