"""What the quality benchmark compares: each variant is a kind of training and some settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Variant:
    """kind: popularity, central or federated; changes: settings by their full keys, over those of the command line."""

    kind: Literal["popularity", "central", "federated"]
    changes: dict[str, Any] = field(default_factory=dict)


_SASREC = {"model.mixture": False, "model.item_representation": "id"}
_CONTENT = {"model.mixture": False, "model.item_representation": "id+content"}
_MIXTURE_CONTENT = {"model.item_representation": "id+content"}
_NOISE = {"data.text_file": "noise", "data.visual_file": "noise"}
# Client-side Adam, new each round, small steps and plain averaging, a fifth of the clients a round, id embeddings.
_REFERENCE = {
    "model.item_representation": "id",
    "federation.strategy": "fedavg",
    "federation.strategy_parameters": {},
    "federation.server_schedule": "constant",
    "federation.client_fraction": 0.2,
    "federation.num_rounds": 100,
    "federation.shared": "all",
    "training.optimizer": "adam",
    "training.learning_rate": 1e-3,
}

VARIANTS: dict[str, Variant] = {
    "popularity": Variant("popularity"),
    "central SASRec, id": Variant("central", _SASREC),
    "central SASRec, id+content": Variant("central", _CONTENT),
    "central mixture": Variant("central"),
    "central mixture, id+content": Variant("central", _MIXTURE_CONTENT),
    "federated SASRec, id": Variant("federated", _SASREC),
    "federated SASRec, id+content": Variant("federated", _CONTENT),
    "federated mixture": Variant("federated"),
    "federated mixture, id+content": Variant("federated", _MIXTURE_CONTENT),
    "federated mixture, all shared": Variant("federated", {"federation.shared": "all"}),
    "federated mixture, noise": Variant("federated", _NOISE),
    "federated mixture, competitive": Variant("federated", {"model.fusion": "competitive"}),
    "federated mixture, score-level": Variant("federated", {"model.fusion": "score"}),
    "federated as the reference trains": Variant("federated", _REFERENCE),
}

# What is to be read off the rows, each pair only where both were run: the first over the second.
COMPARISONS: tuple[tuple[str, str], ...] = (
    ("federated SASRec, id", "central SASRec, id"),
    ("federated SASRec, id+content", "central SASRec, id+content"),
    ("federated mixture", "central mixture"),
    ("federated mixture, id+content", "central mixture, id+content"),
    ("federated SASRec, id+content", "federated SASRec, id"),
    ("federated mixture", "federated SASRec, id"),
    ("federated mixture, personalised", "federated SASRec, id, personalised"),
    ("federated mixture", "federated SASRec, id+content"),
    ("federated mixture, personalised", "federated SASRec, id+content, personalised"),
    ("federated mixture, id+content", "federated SASRec, id"),
    ("federated mixture, id+content", "federated SASRec, id+content"),
    ("federated mixture, id+content", "federated mixture"),
    ("federated mixture, noise", "federated SASRec, id"),
    ("federated SASRec, id, personalised", "federated SASRec, id"),
    ("federated SASRec, id+content, personalised", "federated SASRec, id+content"),
    ("federated mixture, personalised", "federated mixture"),
    ("federated mixture, id+content, personalised", "federated mixture, id+content"),
    ("federated mixture, all shared", "federated mixture"),
    ("federated mixture, personalised", "federated mixture, all shared"),
)
