"""``python -m fedmoe_client recommend``: the items that one user is most likely to want next, ranked on its device.

The last global model that the client received, with the user's private parameters in it, scores the whole catalogue but
for the items that the user has met. Nothing is sent anywhere, and the client need not run. No torch here: loading it
takes longer than all the rest, and NumPy ranks the same (see ``model.ranking``).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.dataset import Dataset
from fedmoe.errors import FedMoEError, nearest
from fedmoe.settings import Settings
from fedmoe_client.store.folder import ClientStore, State
from fedmoe_client.store.history import read_histories
from fedmoe_client.store.identity import identity_of, item_numbers, own_dataset, refuse_other
from fedmoe_client.store.private import GLOBAL, kept_memory, latest_private, private_name
from model.ranking import Ranker

PIECE = 32768  # items that are scored at once


@dataclass(frozen=True)
class Recommendation:
    """One item: its id in the catalogue, its title ("" where unknown) and its score."""

    item: str
    title: str
    score: float


@dataclass(frozen=True)
class Recommendations:
    """The best items of one user, the best first.

    user: name of its history; seconds: what ranking took; notes: what is worth telling, one line each.
    """

    user: str
    items: list[Recommendation]
    seconds: float
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def main(words: Sequence[str]) -> int:
    """Print the items; return the exit status: 0 done, 2 something for the user to put right."""
    given = _parser().parse_args(list(words))
    try:
        found = recommendations(given.state_dir, given.top, given.history, given.user)
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(found.as_json(), ensure_ascii=False) if given.json else _table(found))
    return 0


def recommendations(state_dir: Path, top: int, history: Path | None = None, user: str | None = None) -> Recommendations:
    """Rank the catalogue for a user.

    Args:
        state_dir: the client's state folder.
        top: number of items.
        history: file or folder of the history; None: the one that the node was started with.
        user: name of the user's file in a folder; not needed where there is one user.

    Raises:
        FedMoEError: the client has not received a model yet, or there is no such history or user.
    """
    started = time.perf_counter()
    store = ClientStore.existing(state_dir)
    dataset, ranker, private = _own_model(store)
    name, seen, notes = _history(store, dataset, private, history, user)
    candidates = np.setdiff1d(np.arange(1, dataset.interactions.num_items + 1), seen)
    pieces = [candidates[at : at + PIECE] for at in range(0, len(candidates), PIECE)]
    scores = np.concatenate([np.zeros(0, np.float32), *(ranker.scores(seen.astype(np.int64), p) for p in pieces)])
    best = np.argsort(-scores, kind="stable")[:top]
    titles, ids = dataset.titles, dataset.interactions.item_ids
    items = [
        Recommendation(str(ids[item]), "" if titles is None else titles[item], float(score))
        for item, score in zip(candidates[best].tolist(), scores[best].tolist(), strict=True)
    ]
    return Recommendations(name, items, time.perf_counter() - started, notes)


def _own_model(store: ClientStore) -> tuple[Dataset, Ranker, State | None]:
    """Return the catalogue, the last global model with the user's own private parameters in it, and the private state.

    Raises FedMoEError if there is no model yet, or if the catalogue is not the one that it was trained with.
    """
    received = store.load(GLOBAL)
    if received is None:
        raise FedMoEError(f"{store.folder} holds no model yet: the client has not taken part in a round")
    about = received.about
    settings = Settings.model_validate_json(about["settings"])
    catalogue = store.note("node").get("catalogue")
    dataset = own_dataset(settings, None if catalogue is None else Path(catalogue))
    refuse_other(about["identity"], identity_of(settings, dataset))
    private = store.load(private_name(about["identity"]["model"]))
    own = {name: array for name, array in latest_private(private).items() if name in about["private"]}
    return dataset, Ranker(settings, received.arrays | own, dataset.features), private


def _history(
    store: ClientStore, dataset: Dataset, private: State | None, history: Path | None, user: str | None
) -> tuple[str, NDArray[np.int32], list[str]]:
    """Return the user's name, the items it has met, and notes.

    The history as it is now counts; if it cannot be read, the memory of the last training serves.
    """
    memory = kept_memory(private)
    number, known = store.number(None), dataset.interactions
    path = history or store.note("node").get("history")
    if path is None:
        if number >= known.num_users:
            raise FedMoEError("no history is known: give --history FILE")
        return _chosen(user, [str(known.user_ids[number])]), known.history(number), []
    try:
        own = read_histories(Path(path), number, item_numbers(dataset), least=0)
    except FedMoEError as error:
        if history is not None or not memory:
            raise
        name = _chosen(user, list(memory))
        return name, memory[name], [f"{error}; ranked with what the client remembers of it"]
    numbers = {name: number for number, name in own.names.items()}
    name = _chosen(user, list(numbers))
    unknown = own.unknown[numbers[name]]
    notes = [f"{len(unknown)} items of the history are not in the catalogue, such as '{unknown[0]}'"] if unknown else []
    return name, own.history(numbers[name]), notes


def _chosen(user: str | None, names: list[str]) -> str:
    if user is None and len(names) == 1:
        return names[0]
    if user in names:
        return str(user)
    if user is None:
        raise FedMoEError(f"this client has {len(names)} users: give --user NAME, one of {', '.join(names[:5])} ...")
    raise FedMoEError(f"no user '{user}' here{nearest(user, names)}")


def _table(found: Recommendations) -> str:
    width = max((len(item.title or item.item) for item in found.items), default=0)
    lines = [
        f"{rank:>4}  {item.title or item.item:<{width}}  {item.score:10.4f}{f'   {item.item}' if item.title else ''}"
        for rank, item in enumerate(found.items, start=1)
    ]
    return "\n".join([*lines, f"ranked in {found.seconds:.2f} s"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m fedmoe_client recommend", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state-dir", type=Path, required=True, help="the client's state folder")
    parser.add_argument("--top", type=_count, default=10, help="number of items (default 10)")
    parser.add_argument("--history", type=Path, help="file or folder of the history; default: the node's")
    parser.add_argument("--user", help="name of the user, where the history is a folder of several")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
