"""Experts: attention of a candidate over the items that the user met lately, each in one modality.

A kind of expert derives from ``Expert`` and overrides two methods. ``model.experts``, or ``expert`` of a modality, is
``package.module:Class``. ``MatchingExpert`` (default) begins as a rule that holds without any training (recent
items like the candidate count) and refines it. ``FeatureAttention`` and ``ItemAttention``, the reference's, learn from
nothing what to attend to.

One pass over a window trains all its positions. The memory is refreshed every R positions: the positions of a segment
share the K items met up to the segment's first input, so that the experts run once a segment and not once a position.
With R = 1 each position has a memory of its own; ranking always uses the latest one. A context is cut into blocks of R
items such that segment m sees the K / R blocks m, m + 1, ...; sums over a block are shared by all segments that see it.
Keys and values are projected once per context item, queries once per candidate.

Shapes: B windows, L positions, N candidates, C context items, K items of a memory, M segments of a window, A attention
size, H heads, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fedmoe.components import Kind
from fedmoe.settings import ModelSettings
from model.attention import Memory, Mixture, attend, mixed, usable_memory
from model.sasrec import Dropout, FixedFeatures, principal_axes

SHARPNESS = 6.0  # of a matching expert before training: logit of an item whose features are the candidate's own


class Expert(nn.Module, ABC):
    """What one modality says of a candidate to a user: a vector of the size of an item vector, a *view*.

    A constructor takes ``features``, the modality's, and ``settings``, the model's; further arguments are those of
    ``expert_parameters``. To be trained in stacks of clients, parameters must be those of Linear and LayerNorm layers.
    """

    def __init__(self, features: FixedFeatures) -> None:
        super().__init__()
        self._features = [features]  # in a list: the catalogue's, not this module's

    @property
    def features(self) -> FixedFeatures:
        """The features of the catalogue's items."""
        return self._features[0]

    @abstractmethod
    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Return what items ``[...]`` with vectors ``[..., D]`` ask with, ``[..., A]``, whoever the user is."""

    @abstractmethod
    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the view ``[B, M, N, D]`` of candidates ``[B, N]``, and where there is one, bool ``[B, M, N]``.

        queries: the candidates', ``[B, N, A]``; vectors: the memory's item vectors, ``[B, C, D]``.
        """

    def mixture(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> Mixture | None:
        """Return the same as ``forward`` as what it is made of; None where that would not be quicker, or is unknown."""
        return None


class AttentionExpert(Expert):
    """An expert by attention: keys and values are made of what the memory's items show in the modality."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Module
    heads, decay, floor = 1, 0.0, 0.0

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Ask with the items' features."""
        asked: Tensor = self.query(self.features.values[items])
        return asked

    def values(self, shown: Tensor, vectors: Tensor) -> Tensor:
        """Return what is said of items with features ``[..., F]`` and vectors ``[..., D]``, ``[..., D]``."""
        said: Tensor = self.value(shown)
        return said

    def forward(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Attend over the items of the memory that have the modality."""
        query, key, value, usable = self._parts(candidates, queries, memory, vectors)
        attended, has_view = attend(query, key, value, usable, memory, self.heads, self.decay, self.floor)
        return self.output(attended), has_view

    def mixture(self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor) -> Mixture | None:
        """Return the shares of a short memory of one segment, where nothing comes after the attention."""
        short = memory.segments == 1 and 2 * memory.items.shape[1] <= vectors.shape[-1]
        if not short or self.heads > 1 or not isinstance(self.output, nn.Identity):
            return None
        return mixed(*self._parts(candidates, queries, memory, vectors), self.decay, self.floor)

    def _parts(
        self, candidates: Tensor, queries: Tensor, memory: Memory, vectors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys, values, and which items of the memory can be attended to."""
        usable = usable_memory(candidates, memory, self.features.present)
        shown = self.features.values[memory.items]
        return queries, self.key(shown), self.values(shown, vectors), usable


class MatchingExpert(AttentionExpert):
    """Attention by likeness: recent items of the memory whose features are like the candidate's.

    The weight of an item is ``(exp(likeness) + floor) * exp(-age / decay)``, over the sum of all, with the likeness
    ``(W_q f_candidate + b) . (W_k f_item) / sqrt(A)``. W_q and W_k begin as the same principal axes of the features, so
    that it begins as ``SHARPNESS`` times their cosine. Without the floor what was met last hardly counts where older
    items are alike.

    The view is the so weighted mean of the item vectors themselves: the modality says which items of the memory speak
    for the candidate, and what they say, all users have taught them.
    """

    def __init__(self, features: FixedFeatures, settings: ModelSettings) -> None:
        super().__init__(features)
        size, self.decay, self.floor = settings.attention_dim, settings.memory_decay, settings.memory_floor
        self.query = nn.Linear(features.dim, size)
        self.key = nn.Linear(features.dim, size, bias=False)  # a bias would be the same for all items
        with torch.no_grad():
            axes = principal_axes(features.values, size)
            for layer in (self.query, self.key):
                layer.weight.copy_(axes * (SHARPNESS * size**0.5) ** 0.5)
            self.query.bias.zero_()
        self.output = nn.Identity()

    def values(self, shown: Tensor, vectors: Tensor) -> Tensor:
        """Return the item vectors."""
        return vectors


class FeatureAttention(AttentionExpert):
    """The reference's expert of pictures: one head, which asks with the candidate's features."""

    def __init__(self, features: FixedFeatures, settings: ModelSettings) -> None:
        super().__init__(features)
        self.query = nn.Linear(features.dim, settings.attention_dim)
        self.key = nn.Linear(features.dim, settings.attention_dim)
        # The linear map that the reference applies after the attention: the same, since weights sum to 1.
        self.value = nn.Linear(features.dim, settings.dim)
        self.output = nn.Sequential(nn.LayerNorm(settings.dim), nn.ReLU(), Dropout(settings.dropout, shared=True))


class ItemAttention(AttentionExpert):
    """The reference's expert of texts: several heads, which ask with the candidate's item vector."""

    def __init__(self, features: FixedFeatures, settings: ModelSettings) -> None:
        super().__init__(features)
        dim, self.heads = settings.dim, settings.heads
        self.query = nn.Linear(dim, settings.attention_dim)
        self.key = nn.Linear(features.dim, settings.attention_dim)
        self.value = nn.Linear(features.dim, dim)
        self.output = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU(), Dropout(settings.dropout, shared=True)
        )

    def queries(self, items: Tensor, vectors: Tensor) -> Tensor:
        """Ask with the items' vectors."""
        asked: Tensor = self.query(vectors)
        return asked


EXPERTS = Kind(
    "model.experts",
    "modalities.NAME.expert_parameters",
    Expert,  # type: ignore[type-abstract]  # the base is only asked for its subclasses
    {"matching": MatchingExpert, "feature_attention": FeatureAttention, "item_attention": ItemAttention},
)
