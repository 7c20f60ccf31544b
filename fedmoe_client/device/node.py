"""What a node was told about its client when it was started: Flower's node config. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedmoe.errors import FedMoEError, nearest

Value = bool | int | float | str
KEYS = ("partition-id", "num-partitions", "history", "catalogue", "state-dir", "warm")


@dataclass(frozen=True)
class Node:
    """A client's place on this machine.

    Attributes:
        number: the client's number (``partition-id``), None where it is to draw one of its own.
        history: one user's own history, or a folder of many users'; None: the user ``number`` of the data set.
        catalogue: folder made by ``data.dataset``; None: the catalogue of the data set.
        state_dir: folder for all that the client keeps; None: Flower's context, which a crash of the node loses.
        warm: whether a resident process works for this node (only with a ``state_dir``).
    """

    number: int | None
    history: Path | None = None
    catalogue: Path | None = None
    state_dir: Path | None = None
    warm: bool = False

    def __post_init__(self) -> None:
        if self.number is None and self.history is None:
            raise FedMoEError("node config: give partition-id=N, or history=FILE with state-dir=FOLDER")
        if self.number is None and self.state_dir is None:
            raise FedMoEError("node config: history=FILE needs state-dir=FOLDER, or partition-id=N beside it")
        if self.number is not None and self.number < 0:
            raise FedMoEError(f"node config: partition-id = {self.number} must not be negative")

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
    state_dir = _path(config, "state-dir")
    warm = config.get("warm", state_dir is not None)
    if not isinstance(warm, bool) or (warm and state_dir is None):
        raise FedMoEError(f"node config: warm = {warm!r} must be true or false, and true needs state-dir=FOLDER")
    return Node(_number(config), _path(config, "history"), _path(config, "catalogue"), state_dir, warm)


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
