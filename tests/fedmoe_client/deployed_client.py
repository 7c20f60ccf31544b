"""A small client that can be deployed: settings, a run's arrays, a history file and a state folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from data.dataset import Dataset
from data.registry import load_dataset
from fedmoe.loading import load_settings, to_run_config
from fedmoe.modalities import GROUPS
from fedmoe.wire import packed_bytes, to_record
from fedmoe_client.device.node import node_from
from fedmoe_client.device.task import Task, perform
from model.build import initial_arrays

WORDS = (
    "dataset=synthetic users=12 data.synthetic.items=40 dim=8 attention_dim=8 blocks=1 max_seq_len=6 memory_size=6 "
    "memory_refresh=3 num_negatives=5 max_windows=0 learning_rate=0.5 batch_size=1 checkpoint_every=3"
).split()
SHARED = ["embedding", "backbone", "experts.*"]
PRIVATE = [group for group in GROUPS if group not in SHARED]
USER = 3


@dataclass
class Deployment:
    """One client of a deployed run. It uses its own history file, in a state folder."""

    folder: Path
    user: int = USER
    words: list[str] = field(default_factory=lambda: list(WORDS))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = load_settings(self.words)[0]
        self.run_config = to_run_config(self.settings)
        self.dataset: Dataset = load_dataset(self.settings)
        self.state_dir, self.history = self.folder / "state", self.folder / "history.txt"
        self.write_history(self.dataset.interactions.history(self.user))

    def write_history(self, items: np.ndarray) -> None:
        ids = self.dataset.interactions.item_ids
        self.history.write_text("".join(f"{ids[item]}\n" for item in items), encoding="utf-8")

    def node(self, **changes: Any) -> dict[str, Any]:
        config = {
            "partition-id": self.user,
            "history": str(self.history),
            "state-dir": str(self.state_dir),
            "warm": False,
        } | {key.replace("_", "-"): value for key, value in changes.items()}
        return {key: value for key, value in config.items() if value is not None}

    def arrays(self) -> ArrayRecord:
        return to_record(initial_arrays(self.settings, self.dataset))

    def task(self, kind: str, number: int, run: str = "run", shared: list[str] = SHARED, **node: Any) -> Task:
        config = {"server-round": number, "shared": shared, "split": "test"}
        return Task(kind, packed_bytes(self.arrays()), config, node_from(self.node(**node)), self.run_config, run)

    def train(self, number: int, run: str = "run", shared: list[str] = SHARED, **node: Any) -> dict[str, bytes]:
        """Do a round's training and return the bytes of what travels."""
        arrays, _, _ = perform(self.task("train", number, run, shared, **node))
        assert arrays is not None
        return {name: array.tobytes() for name, array in arrays.items()}
