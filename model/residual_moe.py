"""The residual mixture: ``final = LN(seq) + g * (w_vis * LN(vis) + w_sem * LN(sem))``, scored against the item vector.

Shapes: B windows, L positions, N candidates, M segments, E experts that exist (0 to 2), D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from model.experts import Expert, MatchingExpert, SemanticExpert, VisualExpert
from model.fusion import representation_scores, score_level_scores, sequence_scores
from model.items import FixedFeatures, ItemVectors
from model.memory import Memory, latest_memory, window_memory
from model.router import ItemRouter
from model.sasrec import SASRec


@dataclass(frozen=True)
class Architecture:
    """The model's hyper-parameters; their meaning, ranges and defaults are those of ``settings.ModelSettings``."""

    num_items: int
    dim: int = 64
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.2
    max_seq_len: int = 50
    mixture: bool = True
    item_representation: Literal["id", "id+content"] = "id"
    fusion: Literal["residual", "competitive", "score"] = "residual"
    score: Literal["dot", "cosine"] = "dot"
    experts: Literal["matching", "attention"] = "matching"
    gate_init: float = 0.5
    norm_sequence: bool = True
    norm_visual: bool = True
    norm_semantic: bool = True
    attention_dim: int = 64
    memory_size: int = 50
    memory_refresh: int = 10
    memory_decay: float = 5.0


@dataclass(frozen=True)
class Views:
    """What the experts say of the candidates of each segment.

    views: each expert's, ``[B, M, N, D]`` (normalised); weights: the router's ``[B, M, N, E']``, where the backbone
    competes its own share first; available bool, of the shape of weights; power ``[B, E]``: mean square of an entry of
    each expert's output before it is normalised, 0 for an expert that says nothing.
    """

    views: tuple[Tensor, ...]
    weights: Tensor
    available: Tensor
    power: Tensor


@dataclass(frozen=True)
class ItemSide:
    """What the model makes of items alone, whoever uses it: vectors ``[..., D]``, queries ``[..., A]`` by expert."""

    vectors: Tensor
    queries: Mapping[str, Tensor]

    def of(self, items: Tensor) -> ItemSide:
        """Return the part of these items, where this is that of the catalogue, row by row."""
        return ItemSide(self.vectors[items], {name: queries[items] for name, queries in self.queries.items()})


@dataclass(frozen=True)
class Scored:
    """scores ``[B, L, N]``; views: None where the model has no expert."""

    scores: Tensor
    views: Views | None


class Gate(nn.Module):
    """The learnable scalar g: how strongly the experts speak."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(initial)))


class ResidualMoE(nn.Module):
    """SASRec with a residual mixture of a visual and a semantic expert; without features it is SASRec."""

    def __init__(
        self, architecture: Architecture, visual: FixedFeatures | None = None, text: FixedFeatures | None = None
    ) -> None:
        super().__init__()
        self.architecture = a = architecture
        self.features = nn.ModuleDict()
        for name, features in (("visual", visual), ("text", text)):
            if features is not None:
                self.features[name] = features
        self.items = ItemVectors(a.num_items, a.dim, a.item_representation, visual, text)
        self.backbone = SASRec(a.dim, a.blocks, a.heads, a.dropout, a.max_seq_len)
        self.norms = nn.ModuleDict({"sequence": _norm(a.dim, a.norm_sequence)})
        self.experts = nn.ModuleDict()
        for name, features in (("visual", visual), ("semantic", text)):
            if a.mixture and features is not None:
                self.experts[name] = _expert(name, features, a)
                self.norms[name] = _norm(a.dim, a.norm_visual if name == "visual" else a.norm_semantic)
        self.competes = a.fusion == "competitive" and len(self.experts) > 0
        self.router = ItemRouter(a.dim, len(self.experts) + self.competes, a.dropout) if self.experts else None
        self.gate = Gate(a.gate_init) if self.experts and not self.competes else None

    def forward(self, context: Tensor, length: int, candidates: Tensor) -> Scored:
        """Score candidates at every position of a window, for training.

        context: item ids ``[B, P + L]``: the window's L = length inputs, and before them P earlier items for the
        experts' memory. candidates: item ids ``[B, N]``, the same for all positions.
        """
        a = self.architecture
        memory = window_memory(context, length, a.memory_size, a.memory_refresh)
        return self._score(self.states(context[:, -length:]), candidates, self.item_side(candidates), memory)

    def rank_scores(self, context: Tensor, candidates: Tensor, catalogue: ItemSide | None = None) -> Tensor:
        """Return the scores ``[B, N]`` of candidates ``[B, N]`` as the item that follows ``context`` ``[B, C]``.

        catalogue: ``item_side`` of the items 0 to V, where it is at hand.
        """
        a = self.architecture
        states = self.states(context[:, -a.max_seq_len :])[:, -1:]
        side = self.item_side(candidates) if catalogue is None else catalogue.of(candidates)
        return self._score(states, candidates, side, latest_memory(context, a.memory_size)).scores[:, 0]

    def item_side(self, items: Tensor) -> ItemSide:
        """Return what the model makes of items ``[...]`` alone."""
        vectors = self.items(items)
        queries = {}
        for name, expert in self.experts.items():
            assert isinstance(expert, Expert)
            queries[name] = expert.queries(items, vectors)
        return ItemSide(vectors, queries)

    def states(self, inputs: Tensor) -> Tensor:
        """Return ``LN(seq)`` ``[B, L, D]`` of inputs ``[B, L]``."""
        normalised: Tensor = self.norms["sequence"](self.backbone(self.items(inputs), inputs > 0))
        return normalised

    def expert_views(self, candidates: Tensor, side: ItemSide, memory: Memory) -> Views:
        """Return the experts' views of candidates ``[B, N]``, whose side this is, and the router's weights."""
        assert self.router is not None
        met = self.items(memory.items)
        views, available, power = [], [], []
        for name, expert in self.experts.items():
            view, has_view = expert(candidates, side.queries[name], memory, met)
            power.append(view.detach().square().mean(dim=(1, 2, 3)))
            views.append(self.norms[name](view))
            available.append(has_view)
        if self.competes:
            available.insert(0, torch.ones_like(available[0]))
        stacked = torch.stack(available, dim=-1)
        return Views(tuple(views), self.router(side.vectors, stacked), stacked, torch.stack(power, dim=-1))

    def _score(self, states: Tensor, candidates: Tensor, side: ItemSide, memory: Memory) -> Scored:
        a, vectors = self.architecture, side.vectors
        if self.router is None:
            return Scored(sequence_scores(states, vectors, a.score), None)
        said = self.expert_views(candidates, side, memory)
        if self.gate is None:
            share, weights = said.weights[..., 0], said.weights[..., 1:]
            scores = representation_scores(states, vectors, said.views, weights, share, memory, a.score)
        elif a.fusion == "score":
            weights = self.gate.value * said.weights
            scores = score_level_scores(states, vectors, said.views, weights, memory, a.score)
        else:
            weights = self.gate.value * said.weights
            scores = representation_scores(states, vectors, said.views, weights, None, memory, a.score)
        return Scored(scores, said)


def _expert(name: str, features: FixedFeatures, a: Architecture) -> Expert:
    if a.experts == "matching":
        return MatchingExpert(features, a.attention_dim, a.memory_decay)
    if name == "visual":
        return VisualExpert(features, a.dim, a.attention_dim, a.dropout)
    return SemanticExpert(features, a.dim, a.attention_dim, a.heads, a.dropout)


def _norm(dim: int, on: bool) -> nn.Module:
    return nn.LayerNorm(dim) if on else nn.Identity()
