"""The residual mixture: ``final = LN(seq) + g * sum_m w_m * LN(view_m)``, scored against the item vector.

One expert for each modality m says a view of the candidate; an item-centric router weighs the views, and a learnable
gate says how strongly they speak. ``final`` depends on the position and the candidate, yet it is never built for every
pair: its dot product with the item vector ``e_c`` splits into ``seq_t . e_c``, one matrix product, and the experts' own
products with ``e_c``, which all positions of a segment share. Its norm, for the cosine, splits likewise.

* residual (default): ``final`` as above
* competitive (the old mixture): ``final = w_seq * LN(seq) + sum_m w_m * LN(view_m)``, without a gate
* score (score-level): no common representation; each expert scores the candidate by sqrt(D) * cos(view, e_c), and the
  scores are mixed: ``seq . e_c + g * sum_m w_m * s_m``

Shapes: B windows, L positions, N candidates, M segments, E experts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.modalities import EXPERT
from fedmoe.settings import ModelSettings
from model.experts import EXPERTS, Expert, Memory, latest_memory, window_memory
from model.sasrec import BACKBONES, Dropout, FixedFeatures, ItemVectors

Score = Literal["dot", "cosine"]


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

    def for_each(self, contexts: int) -> ItemSide:
        """Return a view ``[contexts, ..., D]``: the same items for each context, without a copy."""
        return ItemSide(
            self.vectors.expand(contexts, -1, -1),
            {name: queries.expand(contexts, -1, -1) for name, queries in self.queries.items()},
        )


@dataclass(frozen=True)
class Scored:
    """scores ``[B, L, N]``; views: None where the model has no expert."""

    scores: Tensor
    views: Views | None


class ItemRouter(nn.Module):
    """An MLP on the candidate's item vector; its softmax weighs the experts."""

    def __init__(self, dim: int, experts: int, dropout: float) -> None:
        super().__init__()
        half = max(dim // 2, 1)
        self.layers = nn.Sequential(
            nn.Linear(dim, dim),
            nn.LayerNorm(dim),
            nn.ReLU(),
            Dropout(dropout, shared=True),
            nn.Linear(dim, half),
            nn.ReLU(),
            Dropout(dropout, shared=True),
            nn.Linear(half, experts),
        )

    def forward(self, vectors: Tensor, available: Tensor) -> Tensor:
        """Return the weights ``[B, M, N, E]`` for item vectors ``[B, N, D]``.

        available: bool ``[B, M, N, E]``; an expert without a view of the candidate gets 0 and the others sum to 1.
        Where no expert has one, all weights are 0.
        """
        if available.shape[-1] == 1:  # a softmax over one expert is 1, and has no gradient
            return available.to(vectors.dtype)
        logits = self.layers(vectors).unsqueeze(1).expand(available.shape)
        weights = logits.masked_fill(~available, -1e9).softmax(dim=-1)
        kept: Tensor = weights * available
        return kept


class Gate(nn.Module):
    """The learnable scalar g: how strongly the experts speak."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(initial)))


class ResidualMoE(nn.Module):
    """SASRec with a residual mixture of one expert a modality; without modalities it is SASRec."""

    def __init__(
        self, settings: ModelSettings, num_items: int, modalities: Mapping[str, Modality] | None = None
    ) -> None:
        super().__init__()
        self.settings, self.num_items = settings, num_items
        modalities = modalities or {}
        features = {name: each.features for name, each in modalities.items()}
        self.features = nn.ModuleDict(features)
        self.items = ItemVectors(num_items, settings.dim, features if settings.item_representation != "id" else {})
        self.backbone = BACKBONES.build(settings.backbone, settings.backbone_parameters, settings=settings)
        self.norms = nn.ModuleDict({"sequence": _norm(settings.dim, settings.norm_sequence)})
        self.experts = nn.ModuleDict()
        for name, each in modalities.items() if settings.mixture else ():
            self.experts[name] = EXPERTS.build(each.expert, each.parameters, features=each.features, settings=settings)
            self.norms[name] = _norm(settings.dim, each.norm)
        count = len(self.experts)
        self.competes = settings.fusion == "competitive" and count > 0
        self.router = ItemRouter(settings.dim, count + self.competes, settings.dropout) if count else None
        self.gate = Gate(settings.gate_init) if count and not self.competes else None

    def groups(self) -> dict[str, list[nn.Module]]:
        """Return the submodules of each group of parameters, which is aggregated or kept private as a whole."""
        return {
            "embedding": [self.items],
            "backbone": [self.backbone],
            **{f"{EXPERT}{name}": [expert] for name, expert in self.experts.items()},
            "router": [self.router] if self.router is not None else [],
            "gate": [self.gate] if self.gate is not None else [],
            "norms": [self.norms],
        }

    def forward(self, context: Tensor, length: int, candidates: Tensor) -> Scored:
        """Score candidates at every position of a window, for training.

        context: item ids ``[B, P + L]``: the window's L = length inputs, and before them P earlier items for the
        experts' memory. candidates: item ids ``[B, N]``, the same for all positions.
        """
        s = self.settings
        memory = window_memory(context, length, s.memory_size, s.memory_refresh)
        return self._score(self.states(context[:, -length:]), candidates, self.item_side(candidates), memory)

    def rank_scores(self, context: Tensor, candidates: Tensor) -> Tensor:
        """Return the scores ``[B, N]`` of candidates ``[B, N]`` as the item that follows ``context`` ``[B, C]``."""
        return self._rank(context, candidates, self.item_side(candidates))

    def rank_catalogue(self, context: Tensor, catalogue: ItemSide) -> Tensor:
        """Return the scores ``[B, V + 1]`` of the items 0 to V, whose ``item_side`` this is, after ``context``."""
        items = torch.arange(self.num_items + 1, device=context.device).expand(len(context), -1)
        return self._rank(context, items, catalogue.for_each(len(context)))

    def _rank(self, context: Tensor, candidates: Tensor, side: ItemSide) -> Tensor:
        s = self.settings
        states = self.states(context[:, -s.max_seq_len :])[:, -1:]
        return self._score(states, candidates, side, latest_memory(context, s.memory_size)).scores[:, 0]

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
        s, vectors = self.settings, side.vectors
        if self.router is None:
            return Scored(sequence_scores(states, vectors, s.score), None)
        said = self.expert_views(candidates, side, memory)
        if self.gate is None:
            share, weights = said.weights[..., 0], said.weights[..., 1:]
            scores = representation_scores(states, vectors, said.views, weights, share, memory, s.score)
        elif s.fusion == "score":
            weights = self.gate.value * said.weights
            scores = score_level_scores(states, vectors, said.views, weights, memory, s.score)
        else:
            weights = self.gate.value * said.weights
            scores = representation_scores(states, vectors, said.views, weights, None, memory, s.score)
        return Scored(scores, said)


def _norm(dim: int, on: bool) -> nn.Module:
    return nn.LayerNorm(dim) if on else nn.Identity()


def mixed_view(views: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``sum_e w_e * view_e`` ``[B, M, N, D]`` of E views ``[B, M, N, D]`` and weights ``[B, M, N, E]``."""
    return reduce(torch.add, [weights[..., e, None] * view for e, view in enumerate(views)])


def sequence_scores(states: Tensor, vectors: Tensor, score: Score) -> Tensor:
    """Return SASRec's own scores ``[B, L, N]`` of states ``[B, L, D]`` and item vectors ``[B, N, D]``."""
    return _scored(states @ vectors.transpose(1, 2), states.square().sum(dim=-1, keepdim=True), vectors, score)


def representation_scores(
    states: Tensor,
    vectors: Tensor,
    views: Sequence[Tensor],
    weights: Tensor,
    share: Tensor | None,
    memory: Memory,
    score: Score,
) -> Tensor:
    """Return the scores ``[B, L, N]`` of ``final = share * states + sum_e weights_e * views_e``.

    states ``[B, L, D]``, vectors ``[B, N, D]``, views: E of ``[B, M, N, D]``, weights ``[B, M, N, E]`` (times the
    gate, where there is one), share ``[B, M, N]`` or None for 1.
    """
    products = states @ vectors.transpose(1, 2)
    shares = 1.0 if share is None else memory.by_position(share)
    agreement = torch.stack([(view * vectors.unsqueeze(1)).sum(dim=-1) for view in views], dim=-1)  # [B, M, N, E]
    dot = shares * products + memory.by_position((weights * agreement).sum(dim=-1))
    if score == "dot":
        return dot
    auxiliary = mixed_view(views, weights)
    every = auxiliary.transpose(1, 2) @ states.unsqueeze(1).transpose(2, 3)  # [B, N, M, L]
    crossed = torch.take_along_dim(every, memory.segment[:, None, None], dim=2).squeeze(2).transpose(1, 2)
    states_squared = states.square().sum(dim=-1, keepdim=True)
    own_squared = memory.by_position(auxiliary.square().sum(dim=-1))
    squared = shares * shares * states_squared + 2 * shares * crossed + own_squared
    return _scored(dot, squared, vectors, score)


def score_level_scores(
    states: Tensor, vectors: Tensor, views: Sequence[Tensor], weights: Tensor, memory: Memory, score: Score
) -> Tensor:
    """Return the scores ``[B, L, N]`` of score-level fusion.

    views: E of ``[B, M, N, D]``, weights ``[B, M, N, E]``: the router's times the gate.
    """
    dim, own = vectors.shape[-1], vectors.unsqueeze(1)
    cosines = torch.stack([functional.cosine_similarity(view, own, dim=-1) for view in views], dim=-1)
    auxiliary = (weights * cosines).sum(dim=-1) * dim**0.5
    scores: Tensor = sequence_scores(states, vectors, score) + memory.by_position(auxiliary)
    return scores


def _scored(dot: Tensor, squared_norm: Tensor, vectors: Tensor, score: Score) -> Tensor:
    """Turn dot products ``[B, L, N]`` into scores; squared_norm: of what was multiplied with ``vectors``."""
    if score == "dot":
        return dot
    norms = squared_norm.clamp_min(1e-12).sqrt() * vectors.norm(dim=-1).clamp_min(1e-6).unsqueeze(1)
    scaled: Tensor = vectors.shape[-1] ** 0.5 * dot / norms
    return scaled
