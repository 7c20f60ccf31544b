"""What a node was told about its client when it was started: Flower's node config. No torch here."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmoe.errors import FedMoEError, TellableError, nearest

Value = bool | int | float | str
PATHS = ("history", "catalogue", "state-dir", "key", "roster")
KEYS = (
    "partition-id",
    "num-partitions",
    *PATHS,
    "warm",
    "require-secure",
    "keep-torch",
    "answer-after",
    "padding",
    "fedmoe",
)
KEEP_SECONDS = 300
ANSWER_SECONDS = 0.25


@dataclass(frozen=True)
class Node:
    """A client's place on this machine.

    Attributes:
        number: the client's number (``partition-id``), None where it is to draw one of its own.
        history: one user's own history, or a folder of many users'; None: the user ``number`` of the data set.
        catalogue: folder made by ``data.dataset``; None: the catalogue of the data set.
        state_dir: folder for all that the client keeps; None: Flower's context, which a crash of the node loses.
        warm: whether a resident process works for this node (only with a ``state_dir``).
        key: the client's private key, with which it signs in secure sums; None: it takes part in none.
        roster: file of the public keys that it sums with; None: those that the server has told, each at first.
        smallest: the fewest clients in a sum that it answers for, and it answers in no other way; 0: it does.
        keep: seconds without a message after which the resident process ends, and torch's memory is given back.
        answer_after: seconds from the question to the answer with a masked vector, or a multiple of them; 0: at once.
        padding: whether it works as long as with the longest history where its answer is added up (``padding.py``).
        version: of the FedMoE that has started the node; "": an earlier version, or not ours.
    """

    number: int | None
    history: Path | None = None
    catalogue: Path | None = None
    state_dir: Path | None = None
    warm: bool = False
    key: Path | None = None
    roster: Path | None = None
    smallest: int = 0
    keep: int = KEEP_SECONDS
    answer_after: float = ANSWER_SECONDS
    padding: bool = True
    version: str = ""

    def __post_init__(self) -> None:
        if self.number is None and self.history is None:
            raise FedMoEError("node config: give partition-id=N, or history=FILE with state-dir=FOLDER")
        if self.number is None and self.state_dir is None:
            raise FedMoEError("node config: history=FILE needs state-dir=FOLDER, or partition-id=N beside it")
        if self.number is not None and self.number < 0:
            raise FedMoEError(f"node config: partition-id = {self.number} must not be negative")

    def accept_plain(self) -> None:
        """Raise TellableError if the client answers only where its answer is added up under masks."""
        if self.smallest:
            raise TellableError(
                f"this client answers only in secure sums over at least {self.smallest} clients: "
                "run with privacy.secure_aggregation=on"
            )
        logging.getLogger(__name__).warning("the server sees what this client answers: no secure aggregation")

    @property
    def sole_number(self) -> int:
        """The number of a client without a ``state_dir``, which cannot draw one."""
        assert self.number is not None
        return self.number


def node_from(config: Mapping[str, Value]) -> Node:
    """Read a node config. Raises FedMoEError for a misspelt key, or a value that cannot be used.

    Keys that resemble none of ours are another app's on the same node, and are left alone.
    """
    for key in config:
        if key not in KEYS and (hint := nearest(key, KEYS)):
            raise FedMoEError(f"node config: unknown key '{key}'{hint}")
    history, catalogue, state_dir, key_file, roster = (_path(config, name) for name in PATHS)
    warm = config.get("warm", state_dir is not None)
    if not isinstance(warm, bool) or (warm and state_dir is None):
        raise FedMoEError(f"node config: warm = {warm!r} must be true or false, and true needs state-dir=FOLDER")
    smallest = config.get("require-secure", 0)
    if isinstance(smallest, bool) or not isinstance(smallest, int) or smallest < 0:
        raise FedMoEError(f"node config: require-secure = {smallest!r} must be a number of clients")
    keep, after = int(_seconds(config, "keep-torch", KEEP_SECONDS, 1)), _seconds(config, "answer-after", ANSWER_SECONDS)
    padding, version = config.get("padding", True), str(config.get("fedmoe", ""))
    if not isinstance(padding, bool):
        raise FedMoEError(f"node config: padding = {padding!r} must be true or false")
    places = history, catalogue, state_dir
    return Node(_number(config), *places, warm, key_file, roster, smallest, keep, after, padding, version)


def _seconds(config: Mapping[str, Value], key: str, default: float, least: int = 0) -> float:
    given = config.get(key, default)
    # What has a whole number as its default takes no other.
    if isinstance(given, bool) or not isinstance(given, (int, type(default))) or not least <= given < math.inf:
        raise FedMoEError(f"node config: {key} = {given!r} must be a number of seconds")
    return given


def _number(config: Mapping[str, Value]) -> int | None:
    given = config.get("partition-id")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int):
        raise FedMoEError(f"node config: partition-id = {given!r} must be a whole number")
    return given


def _path(config: Mapping[str, Value], key: str) -> Path | None:
    given = config.get(key)
    if given is None or given == "":
        return None
    path = Path(str(given))
    if not path.is_absolute():
        # Flower starts the client app in a folder of its own choice.
        raise FedMoEError(f"node config: {key} = {given!r} must be an absolute path")
    return path
