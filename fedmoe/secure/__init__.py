"""Secure aggregation: the server learns the sum of the clients' vectors and no single one. Needs no Flower, no torch.

Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning", against a server that may
lie, with the sparse graph of Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic overhead".
"""

from fedmoe.secure.client import SecureClient
from fedmoe.secure.failures import CorruptShares, Refusal, RefusalKind, TooFewClients
from fedmoe.secure.messages import Session, Terms
from fedmoe.secure.notes import MemoryNotebook, Notebook
from fedmoe.secure.primitives import Signer
from fedmoe.secure.server import SecureSum

__all__ = [
    "CorruptShares",
    "MemoryNotebook",
    "Notebook",
    "Refusal",
    "RefusalKind",
    "SecureClient",
    "SecureSum",
    "Session",
    "Signer",
    "Terms",
    "TooFewClients",
]
