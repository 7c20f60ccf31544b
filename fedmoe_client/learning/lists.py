"""What a client's users are shown: the best items of the catalogue, which a metric of lists needs at the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from flwr.app import MetricRecord, RecordDict
from numpy.typing import NDArray

from data.sampling import NEW, Split, held_out
from fedmoe.metrics import LISTS
from fedmoe_client.learning.evaluation import Histories, Scorer, catalogue_candidates, scores_of
from fedmoe_client.learning.silo import Silo

if TYPE_CHECKING:
    from fedmoe_client.learning.client import FedMoEClient


def best_items(
    scorer: Scorer, histories: Histories, user: int, split: Split, length: int, context_length: int
) -> NDArray[np.int64]:
    """Return the ids ``[length]`` of a user's best items, the best one first: the held-out item is one of many.

    Of equal scores the smaller id comes first. Items that the user has met come last, where there are not enough.
    """
    part = held_out(histories.history(user), split)
    candidates, counted, places = catalogue_candidates([part], histories.num_items)
    counted[0, places] = True
    scores = scores_of(scorer, [user], [part], candidates, context_length)
    by_item = np.where(counted, scores, -np.inf)[0, 1:]  # without the padding
    return np.argsort(-by_item, kind="stable")[:length] + 1


def shown_lists(client: FedMoEClient, split: str) -> RecordDict:
    """Return the record with the lists of a client's users, who have just been evaluated; none for withheld items.

    ``items``: by their own parameters, ``global-items``: by the server's alone.
    """
    if split == NEW:
        return RecordDict()
    bench, settings = client.workbench, client.workbench.settings
    reach = max(settings.model.max_seq_len, settings.model.memory_size)
    server, own = client.ranked

    def listed(arrays: Mapping[str, NDArray[np.float32]], users: Sequence[int]) -> list[int]:
        bench.load(arrays)
        scorer = bench.scorer(arrays)
        lists = [
            best_items(scorer, client.histories, user, cast(Split, split), bench.list_length, reach) for user in users
        ]
        return [int(item) for each in lists for item in each]

    common = private = listed(server, client.users)
    if isinstance(client, Silo):  # each user has its own
        private = [item for user in client.users for item in listed(server | own | client.own_of(user), [user])]
    elif own:
        private = listed(server | own, client.users)
    return RecordDict({LISTS: MetricRecord({"items": private, "global-items": common})})
