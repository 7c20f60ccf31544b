"""The model's ranking in NumPy, for a device where a user waits: importing torch takes longer than all of this.

What ``ResidualMoE.rank_scores`` computes, for one user and without training, to five digits; a test compares the two
for every kind of mixture. No torch here.

Shapes: V items (rows 1..V; row 0 is padding), N candidates, L positions, C items of the memory, H heads, E experts
that exist, D hidden size, F width of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings

Floats = NDArray[np.float32]
Items = NDArray[np.int64]
_REACH = 60.0  # as in ``model.experts``


class Features(Protocol):
    """Item features of one modality: values ``[V + 1, F]``, present bool ``[V + 1]``."""

    @property
    def values(self) -> NDArray[np.float32]:
        """The features; zero where there are none."""

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which items have any."""


class Ranker:
    """A trained model that ranks for one user."""

    def __init__(self, settings: Settings, arrays: Mapping[str, Floats], features: Mapping[str, Features]) -> None:
        """arrays: all parameters, by their names in ``ResidualMoE``; features: of each modality, by its name.

        Raises FedMoEError for an expert of one's own, of which there is no form in NumPy.
        """
        self._settings = settings.model
        self._arrays = arrays
        self._features = {name: (_standardised(each), np.asarray(each.present)) for name, each in features.items()}
        self._experts = {name: settings.expert_of(name) for name in features if settings.model.mixture}
        if own := [kind for kind in self._experts.values() if ":" in kind]:
            raise FedMoEError(f"recommendations on the device know the experts of this package, not {own[0]}")

    def scores(self, history: Items, candidates: Items) -> Floats:
        """Return the scores ``[N]`` of candidates ``[N]`` as what follows a history of any length, oldest first."""
        s = self._settings
        vectors = self._items(candidates)
        state = self._state(history[-s.max_seq_len :])
        if not self._experts:
            return self._scored(np.broadcast_to(state, vectors.shape), vectors)
        views, available = self._views(candidates, vectors, history[-s.memory_size :])
        if s.fusion == "competitive":
            weights = self._weights(vectors, np.insert(available, 0, True, axis=1))
            return self._scored(weights[:, :1] * state + _mixed(views, weights[:, 1:]), vectors)
        gate, weights = self._arrays["gate.value"], self._weights(vectors, available)
        if s.fusion == "score":
            lengths = np.linalg.norm(views, axis=2) * np.linalg.norm(vectors, axis=1)[:, None]
            cosines = np.einsum("ned,nd->ne", views, vectors) / np.maximum(lengths, 1e-8)
            said = s.dim**0.5 * (weights * cosines).sum(axis=1)
            return _float32(self._scored(np.broadcast_to(state, vectors.shape), vectors) + gate * said)
        return self._scored(state + gate * _mixed(views, weights), vectors)

    def _items(self, items: Items) -> Floats:
        """Return the item vectors ``[..., D]``."""
        vectors = self._arrays["items.ids.weight"][items]
        if self._settings.item_representation == "id+content":
            for name, (values, _) in self._features.items():
                vectors = vectors + values[items] @ self._arrays[f"items.projections.{name}.weight"].T
        return vectors

    def _state(self, inputs: Items) -> Floats:
        """Return ``LN(seq)`` ``[D]`` at the latest position of inputs ``[L]``, of which none is padding."""
        if len(inputs) == 0:
            inputs = np.zeros(1, np.int64)
        positions = self._arrays["backbone.positions.weight"][-len(inputs) :]
        states = (self._items(inputs) * self._settings.dim**0.5 + positions) * (inputs > 0)[:, None]
        for block in range(self._settings.blocks):
            name = f"backbone.blocks.{block}"
            states = states + self._attention(self._norm(states, f"{name}.attention_norm"), f"{name}.attention")
            hidden = self._linear(self._norm(states, f"{name}.feed_forward_norm"), f"{name}.feed_forward.0")
            states = states + self._linear(np.maximum(hidden, 0), f"{name}.feed_forward.3")
        return self._norm(_float32(states[-1]), "norms.sequence")

    def _attention(self, states: Floats, name: str) -> Floats:
        """Return causal multi-head self-attention ``[L, D]`` of states ``[L, D]``."""
        length, dim = states.shape
        query, key, value = (
            _heads(part, self._settings.heads)
            for part in np.split(self._linear(states, f"{name}.query_key_value"), 3, axis=1)
        )
        logits = query @ key.transpose(0, 2, 1) * (dim // self._settings.heads) ** -0.5
        weights = _softmax(np.where(np.tri(length, dtype=bool), logits, -np.inf))
        return self._linear((weights @ value).transpose(1, 0, 2).reshape(length, dim), f"{name}.output")

    def _views(self, candidates: Items, vectors: Floats, memory: Items) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the experts' normalised views ``[N, E, D]`` and which of them there are, bool ``[N, E]``."""
        views, available = [], []
        for modality, kind in self._experts.items():
            values, present = self._features[modality]
            name = f"experts.{modality}"
            usable = (candidates[:, None] != memory) & present[memory] & present[candidates][:, None]
            if kind == "matching":
                view = self._match(candidates, memory, modality, usable, name)
            else:
                by_item = kind == "item_attention"
                query = self._linear(vectors if by_item else values[candidates], f"{name}.query")
                key, value = (self._linear(values[memory], f"{name}.{part}") for part in ("key", "value"))
                heads = self._settings.heads if by_item else 1
                view = self._norm(_attend(query, key, value, usable, heads), f"{name}.output.0")
                view = np.maximum(self._linear(view, f"{name}.output.1") if by_item else view, 0)
            views.append(self._norm(view, f"norms.{modality}"))
            available.append(usable.any(axis=1))
        return np.stack(views, axis=1), np.stack(available, axis=1)

    def _match(self, candidates: Items, memory: Items, modality: str, usable: NDArray[np.bool_], name: str) -> Floats:
        """Return what a matching expert attends to ``[N, D]``."""
        values = self._features[modality][0]
        query, key = self._linear(values[candidates], f"{name}.query"), self._linear(values[memory], f"{name}.key")
        decay = self._settings.memory_decay
        fading = (np.arange(len(memory)) - (len(memory) - 1)) / decay if decay else 0.0
        return _attend(query, key, self._items(memory), usable, heads=1, fading=_float32(np.asarray(fading)))

    def _weights(self, vectors: Floats, available: NDArray[np.bool_]) -> Floats:
        """Return the router's weights ``[N, E]`` for item vectors ``[N, D]``."""
        hidden = np.maximum(self._norm(self._linear(vectors, "router.layers.0"), "router.layers.1"), 0)
        logits = self._linear(np.maximum(self._linear(hidden, "router.layers.4"), 0), "router.layers.7")
        return _float32(_softmax(np.where(available, logits, -1e9)) * available)

    def _scored(self, final: Floats, vectors: Floats) -> Floats:
        """Return the scores ``[N]`` of representations ``[N, D]`` against item vectors ``[N, D]``."""
        dot = np.einsum("nd,nd->n", final, vectors)
        if self._settings.score == "dot":
            return _float32(dot)
        lengths = np.sqrt(np.maximum(np.square(final).sum(axis=1), 1e-12))
        return _float32(vectors.shape[1] ** 0.5 * dot / (lengths * np.maximum(np.linalg.norm(vectors, axis=1), 1e-6)))

    def _linear(self, inputs: Floats, name: str) -> Floats:
        product = inputs @ self._arrays[f"{name}.weight"].T
        bias = self._arrays.get(f"{name}.bias")
        return product if bias is None else product + bias

    def _norm(self, inputs: Floats, name: str) -> Floats:
        """Return LayerNorm over the last axis, or the inputs where the model has no such norm."""
        if f"{name}.weight" not in self._arrays:
            return inputs
        centred = inputs - inputs.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
        return _float32(centred / scale * self._arrays[f"{name}.weight"] + self._arrays[f"{name}.bias"])


def _attend(
    query: Floats, key: Floats, value: Floats, usable: NDArray[np.bool_], heads: int, fading: Floats | float = 0.0
) -> Floats:
    """Return ``[N, D]`` for query ``[N, A]``, key ``[C, A]``, value ``[C, D]``, usable ``[N, C]``; zero for nothing.

    fading ``[C]``: added to the logits.
    """
    query, key, value = (_heads(array, heads) for array in (query, key, value))
    logits = query @ key.transpose(0, 2, 1) * query.shape[2] ** -0.5 + fading  # [H, N, C]
    exponentials = np.exp(np.clip(logits, -_REACH, _REACH)) * usable
    total = np.maximum(exponentials.sum(axis=2, keepdims=True), np.finfo(np.float32).tiny)
    return _float32((exponentials @ value / total).transpose(1, 0, 2).reshape(len(usable), -1))


def _heads(array: Floats, heads: int) -> Floats:
    """``[X, A]`` -> ``[H, X, A / H]``."""
    return array.reshape(len(array), heads, array.shape[1] // heads).transpose(1, 0, 2)


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return _float32(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _mixed(views: Floats, weights: Floats) -> Floats:
    """Return ``sum_e w_e * view_e`` ``[N, D]`` of views ``[N, E, D]`` and weights ``[N, E]``."""
    return _float32(np.einsum("ned,ne->nd", views, weights))


def _standardised(features: Features) -> Floats:
    """Return the features as ``FixedFeatures`` has them: centred, each row of norm 1, missing ones zero."""
    values, present = np.asarray(features.values, np.float32), np.asarray(features.present)
    if not present.any():
        return np.zeros_like(values)
    centred = values - _float32(values[present].mean(axis=0, dtype=np.float64))
    return _float32(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6) * present[:, None])


def _float32(array: NDArray[np.floating]) -> Floats:
    return array.astype(np.float32, copy=False)
