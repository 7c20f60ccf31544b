r"""Similarity-aware aggregation: a client weighs more, the closer its update is to the direction of the mean.

With u_i = x_i - x the update of client i, w_i its weight and m = sum_i w_i u_i / sum_i w_i,

    s_i = cos(u_i, m)        a_i = w_i exp(s_i / tau) / sum_j w_j exp(s_j / tau)        x  <-  x + sum_i a_i u_i

With tau -> infinity this is the weighted mean; a small tau favours clients that agree. Updates that point elsewhere,
such as those of a very short history or of a manipulated client, get a small weight and are not refused.

    PYTHONPATH=examples/strategies python sim.py strategy=attentive:Attentive server_schedule=cosine \
        strategy_parameters='{strategy: {name: fedadam, eta: 0.005, tau: 1e-6}, tau: 0.5}'

The softmax over the clients follows Shaoxiong Ji, Shirui Pan, Guodong Long, Xue Li, Jing Jiang, Zi Huang: Learning
Private Neural Language Modeling with Attentive Aggregation, IJCNN 2019 (FedAtt), which attends by a distance of layers;
the cosine of updates as the measure of likeness that of Rui Ye, Zhenyang Ni, Fangzhao Wu, Siheng Chen, Yanfeng Wang:
Personalized Federated Learning with Inferred Collaboration Graphs, ICML 2023 (pFedGraph).
"""

from __future__ import annotations

import math

import numpy as np
from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import FedMoEError
from strategies import Round, Stateless, weight_key
from strategies.layers.replies import weight_of
from strategies.updates import Vector, norm_of, update_of, vector_of, with_arrays


class Attentive(Stateless):
    """Hand on the replies to ``strategy`` so that its weighted mean is the attentive one.

    Each client's update is multiplied by a_i sum_j w_j / w_i. ``strategy`` is to be one that builds on the weighted
    mean of the replies, such as FedAvg, FedAvgM or FedAdam.

    strategy: name of the strategy inside, or a mapping of ``name`` and its parameters.
    tau: temperature of the attention, above 0; cosines lie within -1 and 1, so far above 1 is the plain mean.
    """

    needs_every_reply = True
    compares_replies = True

    def __init__(self, strategy: Strategy, tau: float = 0.5) -> None:
        super().__init__(strategy)
        if not tau > 0:
            raise FedMoEError(f"federation.strategy_parameters of Attentive: 'tau' must be above 0, is {tau}")
        self.tau = tau

    def revised(self, sent: Round, replies: list[Message]) -> list[Message]:
        """Return the replies, each update scaled by its likeness to the mean."""
        key, model = weight_key(self.strategy), vector_of(sent.arrays)
        weights = {i: weight_of(reply, key) for i, reply in enumerate(replies) if reply.has_content()}
        if not weights:
            return replies
        updates = {i: update_of(replies[i], model) for i in weights}
        shares = attention(list(updates.values()), list(weights.values()), self.tau)
        attended = list(replies)
        for (i, update), share in zip(updates.items(), shares, strict=True):
            factor = share * sum(weights.values()) / weights[i]
            moved = {name: model[name] + array * factor for name, array in update.items()}
            attended[i] = with_arrays(replies[i], sent.arrays, moved)
        return attended


def attention(updates: list[Vector], weights: list[float], tau: float) -> list[float]:
    """Return a_i of each client; they are above 0 and sum to 1. An update of zero has the cosine 0."""
    total = sum(weights)
    mean: Vector = {name: np.zeros(array.shape) for name, array in updates[0].items()}
    for weight, update in zip(weights, updates, strict=True):
        for name, array in update.items():
            mean[name] += weight / total * array
    length = norm_of(mean)
    cosines = []
    for update in updates:
        product = sum(float(np.vdot(mean[name], array.astype(np.float64))) for name, array in update.items())
        lengths = length * norm_of(update)
        cosines.append(product / lengths if lengths > 0 else 0.0)
    raw = [w * math.exp((cosine - max(cosines)) / tau) for w, cosine in zip(weights, cosines, strict=True)]
    return [value / sum(raw) for value in raw]
