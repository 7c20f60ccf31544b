"""Ditto: every client has a personal model beside the shared one, and ranks with it.

Tian Li, Shengyuan Hu, Ahmad Beirami, Virginia Smith: Ditto: Fair and Robust Federated Learning Through Personalization,
ICML 2021, algorithm 1. The shared model w is trained as ever. Client k also takes its local steps on

    F_k(v_k) + penalty / 2 * ||v_k - w||^2        v_k its personal model, w the shared one as it came in this round

    python sim.py quick client=examples.clients.ditto:Ditto client_parameters.penalty=0.1

v_k begins as the first w that the client gets, is kept with the client and never leaves it. In the reports the figures
without a prefix are the personal models', those with ``global-`` the shared one's. A client keeps a whole model, and
trains twice a round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmoe.wire import NamedArrays
from fedmoe_client.learning.own_client import LocalRound, OwnClient, Parameters


class Ditto(OwnClient):
    """penalty: the paper's lambda, 0 or more; 0: a model of one's own alone, large: the shared one."""

    whole_table = True  # the term moves also the rows of items that the client does not meet

    def __init__(self, penalty: float) -> None:
        if penalty < 0.0:
            raise ValueError(f"penalty must not be below 0, is {penalty}")
        self.penalty = penalty

    def after_round(self, this: LocalRound, trained: NamedArrays) -> None:
        def near(personal: Parameters) -> Tensor:
            shared = this.tensors(this.start, personal)
            distances = [(own - shared[name]).square().sum() for name, own in personal.items()]
            return 0.5 * self.penalty * torch.stack(distances).sum()

        personal = this.train(this.start | this.kept, near)
        this.kept.update(personal)

    def ranks_with(self, kept: NamedArrays) -> NamedArrays:
        return dict(kept)
