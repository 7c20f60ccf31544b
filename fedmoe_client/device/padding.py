"""Work beside a real client's own: the time of its answer is not to tell how long its history is.

A second client, with a made-up history, carries out the same question, and its answer is thrown away. Its
history has the length that the own one lacks. So all clients train about the windows that a round trains at most
(``max_windows``; without a limit, the next power of two), and look back over as many items when they rank. What is
left of differences, a few milliseconds, goes under in the steps in which answers are sent (``Node.answer_after``).
"""

from __future__ import annotations

import numpy as np

from fedmoe.settings import Settings
from fedmoe_client.learning.client import FedMoEClient
from fedmoe_client.store.history import LEAST, OwnHistories
from fedmoe_client.store.private import NamedArrays, PrivateParameters


class Nowhere(PrivateParameters):
    """The made-up client's private parameters, which nobody keeps."""

    def load(self) -> NamedArrays:
        """Return no arrays: it starts from the server's."""
        return {}

    def _keep(self, arrays: NamedArrays) -> None:
        pass


def other_client(client: FedMoEClient, kind: str) -> FedMoEClient:
    """Return a client with as much to do of a question (``train`` or ``evaluate``) as another one leaves undone."""
    bench, user = client.workbench, client.users[0]
    own, num_items = len(client.histories.history(user)), bench.dataset.interactions.num_items
    length = lacking_of_training(own, bench.settings) if kind == "train" else lacking_of_ranking(own, bench.settings)
    items = 1 + np.arange(length, dtype=np.int32) % max(num_items // 2, 1)  # the others are left for negatives
    made_up = OwnHistories(num_items, {user: items}, {user: ""}, {user: ()})
    return FedMoEClient(bench, client.client, Nowhere(), made_up)


def lacking_of_training(own: int, settings: Settings) -> int:
    """Return the length of a history to train on, which makes training the same work beside one of length ``own``.

    Work goes by windows: the two histories have one more together than a round trains at most. A window that is alone
    may be shorter than others, so where the made-up one is alone it has half the length.
    """
    length, training = settings.model.max_seq_len, settings.training
    windows = -(-max(own - LEAST, 1) // length) if training.windows == "all" else 1
    most = training.max_windows or 1 << (windows - 1).bit_length()
    lacking = most - min(windows, most)
    return LEAST + ((lacking + 1) * length if lacking else -(-length // 2))


def lacking_of_ranking(own: int, settings: Settings) -> int:
    """Return the length of a history which makes ranking the same work beside one of length ``own``."""
    reach = max(settings.model.max_seq_len, settings.model.memory_size)
    return LEAST + max(reach - (own - LEAST + 1), 0)
