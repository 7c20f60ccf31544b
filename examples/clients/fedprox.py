"""FedProx as a client of one's own: a term that keeps the training near the server's model.

Tian Li, Anit Kumar Sahu, Manzil Zaheer, Maziar Sanjabi, Ameet Talwalkar, Virginia Smith: Federated Optimization in
Heterogeneous Networks, MLSys 2020. With w the server's model, a client minimises

    F_k(v) + mu / 2 * ||v - w||^2        over the parameters that are shared

    python sim.py quick client=examples.clients.fedprox:FedProx client_parameters.mu=0.01

It works with any strategy; the strategy ``fedprox`` asks for the same term by its own parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmoe_client.learning.own_client import LocalRound, OwnClient, Parameters


class FedProx(OwnClient):
    """mu: 0 or more; 0 is FedAvg's client."""

    def __init__(self, mu: float) -> None:
        if mu < 0.0:
            raise ValueError(f"mu must not be below 0, is {mu}")
        self.mu = mu

    def loss(self, this: LocalRound, parameters: Parameters) -> Tensor | None:
        server = this.tensors({name: this.start[name] for name in this.shared}, parameters)
        distances = [(parameters[name] - start).square().sum() for name, start in server.items()]
        return 0.5 * self.mu * torch.stack(distances).sum()
