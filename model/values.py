"""What a mixture is made of, and what it returns.

Shapes: B windows, L positions, N candidates, M segments, E experts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from model.experts import Memory
from model.mixture import Mixture
from model.sasrec import FixedFeatures


@dataclass(frozen=True)
class Modality:
    """One modality of a model: its features, the kind of its expert and that one's own arguments, and its LayerNorm."""

    features: FixedFeatures
    expert: str = "matching"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    norm: bool = True


@dataclass(frozen=True)
class Views:
    """What the experts say of the candidates of each segment.

    views: each expert's, ``[B, M, N, D]`` (normalised), where they were put together; agreement ``[B, M, N, E]``: dot
    products of the views with their candidates' vectors; weights: the router's ``[B, M, N, E']``, where the backbone
    competes its own share first; available bool, of the shape of weights; power ``[B, E]``: mean square of an entry of
    each expert's views before they are normalised, 0 for an expert that says nothing.
    """

    views: tuple[Tensor, ...]
    agreement: Tensor
    weights: Tensor
    available: Tensor
    power: Tensor


@dataclass(frozen=True)
class ItemSide:
    """What the model makes of items alone, whoever uses it.

    vectors ``[..., D]``; queries ``[..., A]`` by expert; logits ``[..., E]``: the router's, if it has a choice.
    """

    vectors: Tensor
    queries: Mapping[str, Tensor]
    logits: Tensor | None

    def for_each(self, contexts: int) -> ItemSide:
        """Return a view ``[contexts, ..., D]``: the same items for each context, without a copy."""
        return ItemSide(
            self.vectors.expand(contexts, -1, -1),
            {name: queries.expand(contexts, -1, -1) for name, queries in self.queries.items()},
            None if self.logits is None else self.logits.expand(contexts, -1, -1),
        )


@dataclass(frozen=True)
class Reading:
    """What backbone and experts make of contexts in ranking, whatever norms, router and gate then make of it.

    states ``[B, 1, D]``, before their norm; mixtures: of experts whose views are not put together.
    """

    states: Tensor
    memory: Memory
    mixtures: Mapping[str, Mixture]


@dataclass(frozen=True)
class Scored:
    """scores ``[B, L, N]``; views: None where the model has no expert."""

    scores: Tensor
    views: Views | None
