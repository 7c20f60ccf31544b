"""What all benchmarks share: their settings, what they keep, and the models and ranks of finished runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from data.dataset import Dataset
from data.sampling import Split
from fedmoe.errors import FedMoEError, nearest
from fedmoe.loading import load_settings, settings_from
from fedmoe.modalities import GROUPS
from fedmoe.settings import EvaluationSettings, Settings
from fedmoe.wire import NamedArrays
from fedmoe_client.learning.client import FedMoEClient, carry_out
from fedmoe_client.learning.evaluation import Scorer, ranks
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.private import InContext

Ranks = NDArray[np.float64]
"""A rank from 1 for each user, ``[users]``."""


def job(words: Sequence[str], defaults: Sequence[str] = ()) -> Settings:
    """Return the settings of a command line, whose words other than the config's name outrank the defaults."""
    config = [word for word in words[:1] if "=" not in word]
    return load_settings([*config, *defaults, *words[len(config) :]])[0]


def changed(base: Settings, changes: Mapping[str, Any], **top: Any) -> Settings:
    """Return settings with changes by their full keys, such as ``model.dim``, and top-level ones by name."""
    tree: dict[str, Any] = base.model_dump(mode="json")
    for key, value in changes.items():
        section, leaf = key.split(".")
        tree[section][leaf] = value
    return settings_from({**tree, **top})


def strategy(name: str, schedule: str = "constant", /, **parameters: Any) -> dict[str, Any]:
    """Return the settings of a strategy; the schedule is cosine where there is a server's rate."""
    return {
        "federation.strategy": name,
        "federation.strategy_parameters": parameters,
        "federation.server_schedule": schedule,
    }


def slug(name: str) -> str:
    """Return a name as a file's."""
    return re.sub(r"[^\w+]+", "-", name)


def check_names(names: Iterable[str], known: Collection[str], what: str) -> None:
    """Raise FedMoEError for the first name that is not known."""
    for name in names:
        if name not in known:
            raise FedMoEError(f"no {what} '{name}'{nearest(name, known)} They are: {'; '.join(known)}")


def exit_status(command: Callable[[], object]) -> int:
    """Run a command and return its exit status; 2, and one line on standard error, where the user has to act."""
    try:
        return int(command() is False)
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class Kept:
    """The results in a benchmark's folder, one JSON line each; what is there is not measured again."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, which is made. Raises FedMoEError if its results cannot be read."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.jsonl"
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
            self._lines = {line["key"]: line for line in map(json.loads, lines)}
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise FedMoEError(f"{self._path} cannot be read ({error}): choose another --folder") from error

    def results(self) -> dict[str, dict[str, Any]]:
        """Return all results by key, in the order in which they were measured."""
        return {key: line["result"] for key, line in self._lines.items()}

    def get(self, key: str, about: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result under a key; measure and keep it if there is none.

        about: what the result depends on. Raises FedMoEError if the folder has a result that depends on something else.
        """
        about = json.loads(json.dumps(about))
        if key not in self._lines:
            self._lines[key] = {"key": key, "about": about, "result": measure()}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._lines[key]) + "\n")
        elif self._lines[key]["about"] != about:
            raise FedMoEError(f"{self._path}: '{key}' is of other settings: choose another --folder")
        found: dict[str, Any] = self._lines[key]["result"]
        return found


def sent_by(bench: Workbench, user: int, model: bytes, number: int = 1, **asked: Any) -> NamedArrays:
    """Return the arrays that a simulated client, who remembers nothing, sends in a round; all groups are shared.

    model: the server's, packed; asked: what else the config of the message has.
    """
    client = FedMoEClient(bench, user, InContext(RecordDict()), simulated=True)
    sent = carry_out(client, "train", model, {"server-round": number, "shared": list(GROUPS), **asked}).arrays
    assert sent is not None
    return sent


def context_length(settings: Settings) -> int:
    """Return how many of a user's latest items a model looks at."""
    return max(settings.model.max_seq_len, settings.model.memory_size)


def ranks_of(
    scorer: Scorer,
    settings: Settings,
    dataset: Dataset,
    split: Split = "test",
    users: NDArray[np.int64] | None = None,
    sampled: EvaluationSettings | None = None,
) -> Ranks:
    """Return the rank of each user's held-out item as a run of these settings does.

    users: some of them; None: all. sampled: another protocol, whose candidates are the same for every seed.
    """
    who = np.arange(dataset.interactions.num_users) if users is None else users
    protocol, seed = (settings.evaluation, settings.seed) if sampled is None else (sampled, 0)
    return ranks(scorer, dataset.interactions, who, split, protocol, seed, context_length(settings))
