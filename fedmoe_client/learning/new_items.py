"""How withheld items are ranked, by the model and by what needs no training: popularity and content alone.

The withheld item that a user met last is ranked among all items that the user had not met before, and among the
withheld ones alone, as federated work on new items does (IFedRec, Zhang et al., WWW 2024). The first says whether it is
found at all, the second how well the new items are put in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.dataset import Dataset
from data.sampling import AMONG_NEW, NEW
from fedmoe.metrics import own_metrics
from fedmoe.settings import Settings
from fedmoe_client.learning.evaluation import (
    Scorer,
    catalogue_candidates,
    mean_metrics,
    popularity_metrics,
    popularity_scorer,
    rank_of,
    scores_of,
    split_metrics,
)

NEIGHBOURS = "nearest by content"
LATEST = 5  # items of a user to which candidates are compared


def new_item_ranks(
    scorer: Scorer,
    dataset: Dataset,
    users: Sequence[int] | NDArray[np.int64],
    context_length: int,
    batch_size: int = 32,
) -> NDArray[np.float64]:
    """Return the ranks ``[2, users]`` of the withheld items that users met last: among all items, among the new ones.

    Raises FedMoEError for a user who has met none, ValueError if a score is not a number.
    """
    assert dataset.new is not None
    interactions, found = dataset.interactions, []
    is_new = np.isin(np.arange(interactions.num_items + 1), dataset.new.items)
    for start in range(0, len(users), batch_size):
        chunk = [int(user) for user in users[start : start + batch_size]]
        parts = [dataset.new.case(user, interactions.history(user)) for user in chunk]
        candidates, counted, places = catalogue_candidates(parts, interactions.num_items)
        scores = scores_of(scorer, chunk, parts, candidates, context_length)
        found.append(np.stack([rank_of(scores, each, places) for each in (counted, counted & is_new)]))
    return np.concatenate(found, axis=1)


def new_item_metrics(
    scorer: Scorer, dataset: Dataset, users: Sequence[int] | NDArray[np.int64], settings: Settings
) -> dict[str, float]:
    """Return the mean ``rank`` and the mean metrics of some users, those among the new items with ``among-new-``."""
    reach = max(settings.model.max_seq_len, settings.model.memory_size)
    whole, among = new_item_ranks(scorer, dataset, users, reach)
    cutoffs, own = settings.evaluation.cutoffs, own_metrics(settings.evaluation)
    few = {AMONG_NEW + name: value for name, value in mean_metrics(among, cutoffs, own).items()}
    return {"rank": float(whole.mean()), **mean_metrics(whole, cutoffs, own), **few}


def neighbours_scorer(dataset: Dataset) -> Scorer:
    """Return the scorer by likeness of content to the user's latest items, without any training.

    A score is the mean over modalities of the mean cosine between the features, centred over the catalogue, of the
    candidate and of the latest items. An item without a modality is like none in it.
    """
    tables = [_directions(each.values, each.present) for each in dataset.features.values()]

    def scores(contexts: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
        latest = contexts[:, -LATEST:]
        count = np.maximum((latest > 0).sum(axis=1, keepdims=True), 1)
        total = np.zeros(candidates.shape, np.float32)
        for table in tables:
            wanted = table[latest].sum(axis=1) / count  # [B, F]
            total += np.take_along_axis(wanted @ table.T, candidates, axis=1)
        return total / np.float32(max(len(tables), 1))

    return scores


def _directions(values: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return features ``[V + 1, F]`` centred and of length 1, those that are not present 0."""
    centred = (values - values[present].mean(axis=0)) * present[:, None]
    directions: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return directions


def untrained_metrics(dataset: Dataset, settings: Settings) -> dict[str, dict[str, dict[str, float]]]:
    """Return what needs no training reaches: popularity, and, where items were withheld, nearest by content.

    Name -> split -> means over the users. Popularity has nothing to say of new items, which tie in the last place.
    """
    interactions, evaluation, seed = dataset.interactions, settings.evaluation, settings.seed
    found = {"popularity": popularity_metrics(interactions, evaluation, seed)}
    if dataset.new is None:
        return found
    scorers = {"popularity": popularity_scorer(interactions)}
    if dataset.features:
        scorers[NEIGHBOURS] = neighbours_scorer(dataset)
        found[NEIGHBOURS] = split_metrics(scorers[NEIGHBOURS], interactions, evaluation, seed, LATEST)
    return {
        name: found[name] | {NEW: new_item_metrics(scorer, dataset, dataset.new.users, settings)}
        for name, scorer in scorers.items()
    }
