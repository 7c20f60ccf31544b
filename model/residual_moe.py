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
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedmoe.modalities import EXPERT
from fedmoe.settings import ModelSettings
from model.experts import Expert, Memory, latest_memory, refresh_of, window_memory
from model.fusion import cosine_scores, score_level_scores, sequence_scores
from model.mixture import Mixture
from model.reference_experts import EXPERTS
from model.sasrec import BACKBONES, Dropout, ItemVectors
from model.values import ItemSide, Modality, Reading, Scored, Views


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

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the logits ``[..., E]`` for item vectors ``[..., D]``."""
        logits: Tensor = self.layers(vectors)
        return logits


def router_weights(logits: Tensor | None, available: Tensor) -> Tensor:
    """Return the weights ``[B, M, N, E]`` of the experts, by logits ``[B, N, E]``.

    available: bool ``[B, M, N, E]``; an expert without a view of the candidate gets 0 and the others sum to 1. Where no
    expert has one, all weights are 0. Without logits there is one expert, of weight 1.
    """
    if logits is None:
        return available.to(torch.get_default_dtype())
    # With the experts first in memory, as ``stacked`` puts them, a softmax over so few runs along the candidates.
    there = available.movedim(-1, 0)
    asked = logits.movedim(-1, 0).unsqueeze(2).expand(there.shape)
    return (asked.masked_fill(~there, -1e9).softmax(dim=0) * there).movedim(0, -1)


def stacked(each: Sequence[Tensor]) -> Tensor:
    """Return ``[..., E]`` of E tensors, which stay one after the other in memory."""
    return torch.stack(tuple(each)).movedim(0, -1)


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
        states = self.states(context[:, -length:])
        side, memory = self.item_side(candidates), self.memory(context, length)
        return self._score(states, candidates, side, memory, self.mixtures(candidates, side, memory))

    def memory(self, context: Tensor, length: int) -> Memory:
        """Return the experts' memory at the positions of windows, see ``forward``."""
        s = self.settings
        return window_memory(context, length, s.memory_size, refresh_of(length, s.memory_refresh))

    def rank_scores(self, context: Tensor, candidates: Tensor) -> Tensor:
        """Return the scores ``[B, N]`` of candidates ``[B, N]`` as the item that follows ``context`` ``[B, C]``."""
        side = self.item_side(candidates)
        return self._rank(candidates, side, self._read(context, candidates, side))

    def rank_catalogue(self, context: Tensor, catalogue: ItemSide, reading: Reading | None = None) -> Tensor:
        """Return the scores ``[B, V + 1]`` of the items 0 to V, whose ``item_side`` this is, after ``context``.

        reading: what ``read`` returned, if it was called.
        """
        reading = reading or self.read(context, catalogue)
        return self._rank(self._everything(context), catalogue.for_each(len(context)), reading)

    def read(self, context: Tensor, catalogue: ItemSide) -> Reading:
        """Return what models with these items, backbone and experts have in common when they rank the catalogue."""
        return self._read(context, self._everything(context), catalogue.for_each(len(context)))

    def _everything(self, context: Tensor) -> Tensor:
        return torch.arange(self.num_items + 1, device=context.device).expand(len(context), -1)

    def _read(self, context: Tensor, candidates: Tensor, side: ItemSide) -> Reading:
        s = self.settings
        inputs, memory = context[:, -s.max_seq_len :], latest_memory(context, s.memory_size)
        states = self.backbone(self.items(inputs), inputs > 0)[:, -1:]
        return Reading(states, memory, self.mixtures(candidates, side, memory))

    def _rank(self, candidates: Tensor, side: ItemSide, reading: Reading) -> Tensor:
        states = self.norms["sequence"](reading.states)
        return self._score(states, candidates, side, reading.memory, reading.mixtures).scores[:, 0]

    def mixtures(self, candidates: Tensor, side: ItemSide, memory: Memory) -> dict[str, Mixture]:
        """Return views of candidates ``[B, N]`` as what they are made of, by expert, where that will do and is quicker.

        It does where the agreement of a view with its candidate is all that is asked for.
        """
        if self.settings.score != "dot" or self.settings.fusion == "score":
            return {}
        met, found = self.items(memory.items), {}
        for name, expert in self.experts.items():
            assert isinstance(expert, Expert)
            if (mixture := expert.mixture(candidates, side.queries[name], memory, met)) is not None:
                found[name] = mixture
        return found

    def item_side(self, items: Tensor) -> ItemSide:
        """Return what the model makes of items ``[...]`` alone."""
        vectors = self.items(items)
        queries = {}
        for name, expert in self.experts.items():
            assert isinstance(expert, Expert)
            queries[name] = expert.queries(items, vectors)
        return self.routed(ItemSide(vectors, queries, None))

    def routed(self, side: ItemSide) -> ItemSide:
        """Return the items' side with this model's router, where that has a choice."""
        # A softmax over one expert is 1, and has no gradient.
        if self.router is None or len(self.experts) + self.competes == 1:
            return side
        return replace(side, logits=self.router(side.vectors))

    def states(self, inputs: Tensor) -> Tensor:
        """Return ``LN(seq)`` ``[B, L, D]`` of inputs ``[B, L]``."""
        normalised: Tensor = self.norms["sequence"](self.backbone(self.items(inputs), inputs > 0))
        return normalised

    def expert_views(
        self, candidates: Tensor, side: ItemSide, memory: Memory, mixtures: Mapping[str, Mixture]
    ) -> Views:
        """Return what the experts say of candidates ``[B, N]``, whose side this is, and the router's weights.

        mixtures: of the experts whose views need not be put together.
        """
        vectors, used = side.vectors, memory.used().unsqueeze(-1)
        met = None if len(mixtures) == len(self.experts) else self.items(memory.items)
        views, agreement, available, power = [], [], [], []
        for name, expert in self.experts.items():
            if name in mixtures:
                agreed, has_view, strength = mixtures[name].agreement(vectors, self.norms[name])
                agreement.append(agreed)
            else:
                view, has_view = expert(candidates, side.queries[name], memory, met)
                strength = view.detach().square().mean(dim=-1)
                views.append(self.norms[name](view))
                agreement.append(agreement_of(views[-1], vectors))
            available.append(has_view & used)
            power.append((strength * available[-1]).sum(dim=(1, 2)) / available[-1].sum(dim=(1, 2)).clamp_min(1))
        if self.competes:
            available.insert(0, torch.ones_like(available[0]))
        there = stacked(available)
        return Views(tuple(views), stacked(agreement), router_weights(side.logits, there), there, stacked(power))

    def _score(
        self, states: Tensor, candidates: Tensor, side: ItemSide, memory: Memory, mixtures: Mapping[str, Mixture]
    ) -> Scored:
        s, vectors = self.settings, side.vectors
        if self.router is None:
            return Scored(sequence_scores(states, vectors, s.score), None)
        said = self.expert_views(candidates, side, memory, mixtures)
        share, weights = (said.weights[..., 0], said.weights[..., 1:]) if self.competes else (None, said.weights)
        if self.gate is not None:
            weights = self.gate.value * weights
        if s.fusion == "score":
            return Scored(score_level_scores(states, vectors, said.views, weights, memory, s.score), said)
        scores = dot_scores(states, vectors, said.agreement, weights, share, memory)
        if s.score == "cosine":
            scores = cosine_scores(scores, states, vectors, said.views, weights, share, memory)
        return Scored(scores, said)


def _norm(dim: int, on: bool) -> nn.Module:
    return nn.LayerNorm(dim) if on else nn.Identity()


def agreement_of(view: Tensor, vectors: Tensor) -> Tensor:
    """Return the dot products ``[B, M, N]`` of a view ``[B, M, N, D]`` with the candidates' vectors ``[B, N, D]``."""
    return (view * vectors.unsqueeze(1)).sum(dim=-1)


def dot_scores(
    states: Tensor, vectors: Tensor, agreement: Tensor, weights: Tensor, share: Tensor | None, memory: Memory
) -> Tensor:
    """Return the dot products ``[B, L, N]`` of ``final = share * states + sum_e weights_e * views_e`` with the vectors.

    states ``[B, L, D]``, vectors ``[B, N, D]``; agreement: of each view with its candidate's vector, ``[B, M, N, E]``;
    weights ``[B, M, N, E]`` (times the gate, where there is one), share ``[B, M, N]`` or None for 1.
    """
    products = states @ vectors.transpose(1, 2)
    shares = 1.0 if share is None else memory.by_position(share)
    return shares * products + memory.by_position((weights * agreement).sum(dim=-1))
