"""The items that one user is most likely to want next, ranked on its device.

The last global model that the client received, with the user's private parameters in it, scores the whole catalogue but
for the items that the user has met. Nothing is sent anywhere, and the client need not run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError, nearest
from fedmoe.settings import Settings
from fedmoe_client.learning.evaluation import model_scorer
from fedmoe_client.learning.workbench import Workbench
from fedmoe_client.store.folder import State, StateFolder
from fedmoe_client.store.history import number_of, read_histories
from fedmoe_client.store.identity import own_dataset, refuse_other
from fedmoe_client.store.private import GLOBAL, kept_memory, latest_private, of_user, private_name

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

    def table(self) -> str:
        """Return one line an item: its place, title or id, and score."""
        width = max((len(item.title or item.item) for item in self.items), default=0)
        lines = [
            f"{rank:>4}  {item.title or item.item:<{width}}  {item.score:10.4f}   {item.item if item.title else ''}"
            for rank, item in enumerate(self.items, start=1)
        ]
        return "\n".join([*(line.rstrip() for line in lines), f"ranked in {self.seconds:.2f} s"])


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
    store = StateFolder.existing(state_dir)
    bench, private, names = _own_model(store)
    name, seen, notes = _history(store, bench, private, history, user)
    users = of_user(latest_private(private), number_of(name))  # where it is one of a silo
    bench.load({parameter: array for parameter, array in users.items() if parameter in names})
    items = best_items(bench, seen, top)
    return Recommendations(name, items, time.perf_counter() - started, notes)


def best_items(bench: Workbench, seen: NDArray[np.int32], top: int) -> list[Recommendation]:
    """Return the items that a user is most likely to want after those that it has met, oldest first."""
    dataset = bench.dataset
    candidates = np.setdiff1d(np.arange(1, dataset.interactions.num_items + 1), seen)
    scores = _scores(bench, seen, candidates)
    best = np.argsort(-scores, kind="stable")[:top]
    titles, ids = dataset.titles, dataset.interactions.item_ids
    return [
        Recommendation(str(ids[item]), "" if titles is None else titles[item], float(score))
        for item, score in zip(candidates[best].tolist(), scores[best].tolist(), strict=True)
    ]


def _scores(bench: Workbench, seen: NDArray[np.int32], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the scores ``[N]`` of candidates ``[N]`` as what follows the items that the user has met, oldest first."""
    reach = max(bench.settings.model.max_seq_len, bench.settings.model.memory_size)
    context = np.zeros((1, reach), np.int64)
    recent = seen[-reach:]
    context[0, reach - len(recent) :] = recent
    scorer = model_scorer(bench.model)
    pieces = [candidates[at : at + PIECE] for at in range(0, len(candidates), PIECE)]
    return np.concatenate([np.zeros(0, np.float32), *(scorer(context, piece[None])[0] for piece in pieces)])


def _own_model(store: StateFolder) -> tuple[Workbench, State | None, list[str]]:
    """Return the last global model with the client's private parameters in it, the private state, and their names.

    Raises FedMoEError if there is no model yet, or if the catalogue is not the one that it was trained with.
    """
    received = store.load(GLOBAL)
    if received is None:
        raise FedMoEError(f"{store.folder} holds no model yet: the client has not taken part in a round")
    about = received.about
    settings = Settings.model_validate_json(about["settings"])
    catalogue = store.note("node").get("catalogue")
    bench = Workbench(settings, own_dataset(settings, None if catalogue is None else Path(catalogue)))
    refuse_other(about["identity"], bench.identity)
    private = store.load(private_name(about["identity"]["model"]))
    own = {name: array for name, array in latest_private(private).items() if name in about["private"]}
    bench.load(received.arrays | own)
    return bench, private, about["private"]


def _history(
    store: StateFolder, bench: Workbench, private: State | None, history: Path | None, user: str | None
) -> tuple[str, NDArray[np.int32], list[str]]:
    """Return the user's name, the items it has met, and notes.

    The history as it is now counts; if it cannot be read, the memory of the last training serves.
    """
    memory = kept_memory(private)
    number, known = store.number(None), bench.dataset.interactions
    path = history or store.note("node").get("history")
    if path is None:
        if number >= known.num_users:
            raise FedMoEError("no history is known: give --history FILE")
        return _chosen(user, [str(known.user_ids[number])]), known.history(number), []
    try:
        own = read_histories(Path(path), number, bench.item_numbers, least=0)
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
