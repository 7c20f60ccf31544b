"""A reply far larger than the others is cut down to a size that does no harm: norm clipping against the median.

With u_i = x_i - x the update of client i (its arrays minus the model that it was sent) and m the median of the norms
|u_j| over the round's replies,

    u_i  <-  u_i * min(1, c * m / |u_i|)        c: ``multiple``

so a client multiplies its influence by at most c, whatever it sends, while fewer than half of the clients are bad.
Ziteng Sun, Peter Kairouz, Ananda Theertha Suresh, H. Brendan McMahan: Can You Really Backdoor Federated Learning? 2019,
arXiv:1911.07963, clip at a fixed norm; the median finds the norm by itself, and follows it as updates become smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies.layers.layer import Round, Stateless
from strategies.layers.replies import Clipping
from strategies.updates import norm_of, sent_models, update_of, with_arrays


class OutlierClipping(Stateless):
    """Hand on the replies to ``strategy``, the updates of outliers scaled down as the module says.

    multiple: c above; 0: every reply is handed on as it is. ``clippings`` lists the outliers of the latest round.
    Replies without any change do not count for the median: where most clients have nothing to say, the others may.

    The replies must have passed the guards, so this belongs inside of ``PartialAggregation``. ``needs_every_reply``
    says that it works on single replies; where they arrive as means of many, it is of no use and must be left out.
    """

    def __init__(self, strategy: Strategy, multiple: float) -> None:
        super().__init__(strategy)
        self.multiple = multiple
        self.needs_every_reply = multiple > 0
        self.clippings: list[Clipping] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages of a training round."""
        self.clippings = []
        return super().configure_train(server_round, arrays, config, grid)

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        """Return the replies, outliers scaled down."""
        if not self.multiple:
            return replies
        models = sent_models(sent)
        norms = {i: norm_of(update_of(reply, models(reply))) for i, reply in enumerate(replies) if reply.has_content()}
        changes = [norm for norm in norms.values() if norm > 0]
        bound = self.multiple * median(changes) if changes else 0.0
        clipped = list(replies)
        for position, norm in norms.items():
            if norm > bound:
                self.clippings.append(Clipping(replies[position].metadata.src_node_id, norm, bound))
                model = sent_models(sent, np.float64)(replies[position])
                update = update_of(replies[position], model)
                factor = bound / norm  # 0 for an infinite norm, times which an infinite update would be no number
                moved = {name: model[name] + (array * factor if factor else 0.0) for name, array in update.items()}
                clipped[position] = with_arrays(replies[position], sent.arrays, moved)
        return clipped
