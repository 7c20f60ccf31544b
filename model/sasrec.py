"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018), with pre-norm blocks.

The item vectors are tied between input and output. Windows are padded on the left with item 0.

Shapes: B windows, L positions, H heads, D hidden size, V items (rows 1..V; row 0 is padding), F width of a feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.components import Kind
from fedmoe.settings import ModelSettings

# Length of content in an item's vector before training, far above an id embedding's .16 (D = 64): what items have in
# common is there from the first round, and ids learn in what they differ.
CONTENT_LENGTH = 0.5


class Dropout(nn.Module):
    """Sets entries to zero with a probability and scales up the rest, in training (Srivastava et al., JMLR 2014).

    shared: one mask a window for hidden units of ``[B, ..., D]`` (Gal & Ghahramani, NeurIPS 2016). The candidates of a
    window are compared with each other, so noise that differs between them would blur just what is learned; and one
    mask for hundreds of candidates costs next to nothing.

    Not ``nn.Dropout``: on a CPU a uniform draw and a comparison take a third of the time of its draw.
    """

    def __init__(self, probability: float, shared: bool = False) -> None:
        super().__init__()
        self.probability, self.shared = probability, shared

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden`` with entries dropped in training, unchanged otherwise."""
        if not self.training or self.probability == 0.0:
            return hidden
        keep = 1.0 - self.probability
        like = hidden[(slice(None), *(slice(1),) * (hidden.dim() - 2))] if self.shared else hidden  # [B, 1, ..., 1, D]
        return hidden * torch.rand_like(like).add_(keep).floor_().mul_(1.0 / keep)


class FixedFeatures(nn.Module):
    """The catalogue's features of one modality. They are constants: neither trained, nor saved, nor sent."""

    values: Tensor
    present: Tensor

    def __init__(self, values: np.ndarray, present: np.ndarray) -> None:
        """values: float ``[V + 1, F]``; present: bool ``[V + 1]``, false where an item has none."""
        super().__init__()
        standard = _standardised(torch.tensor(values, dtype=torch.float32), torch.tensor(present))
        self.register_buffer("values", standard, persistent=False)
        self.register_buffer("present", torch.tensor(present, dtype=torch.bool), persistent=False)

    @property
    def dim(self) -> int:
        """Width F."""
        return int(self.values.shape[1])


def _standardised(values: Tensor, present: Tensor) -> Tensor:
    """Centre the features over the items that have them and give each row norm 1, whatever encoder made them."""
    if not present.any():
        return torch.zeros_like(values)
    centred = values - values[present].mean(dim=0)
    scaled = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-6)
    kept: Tensor = scaled * present.unsqueeze(1)
    return kept


def principal_axes(values: Tensor, count: int) -> Tensor:
    """Return the ``count`` orthonormal axes ``[count, F]`` along which rows ``[V + 1, F]`` are longest, 0 beyond F."""
    rows = values.double()
    axes = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :count].T
    # An eigenvector's sign is anybody's choice: the largest entry is positive here.
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    return functional.pad(axes, (0, 0, 0, count - len(axes))).to(values.dtype)


class ItemVectors(nn.Module):
    """``e_c``: an item's id embedding, plus a projection of each of its ``content`` features."""

    def __init__(self, num_items: int, dim: int, content: Mapping[str, FixedFeatures]) -> None:
        super().__init__()
        self.ids = nn.Embedding(num_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.ids.weight, std=0.02)
        with torch.no_grad():
            self.ids.weight[0].zero_()
        # Features are held in a plain dict: they belong to the catalogue, not to this module.
        self._features = dict(content)
        self.projections = nn.ModuleDict({name: _likeness_kept(each, dim) for name, each in content.items()})

    def forward(self, items: Tensor) -> Tensor:
        """Return ``[..., D]`` for item ids ``[...]``; padding and missing features contribute zero."""
        vectors: Tensor = self.ids(items)
        for name, projection in self.projections.items():
            vectors = vectors + projection(self._features[name].values[items])
        return vectors


def _likeness_kept(features: FixedFeatures, dim: int) -> nn.Linear:
    """Return a projection under which like items begin with like vectors: the principal axes, turned at random.

    Turned, so that modalities do not speak in the same D directions.
    """
    projection = nn.Linear(features.dim, dim, bias=False)
    with torch.no_grad():
        turn = torch.linalg.qr(torch.randn(dim, dim))[0]
        projection.weight.copy_(CONTENT_LENGTH * turn @ principal_axes(features.values, dim))
    return projection


class SelfAttention(nn.Module):
    """Causal multi-head self-attention that never looks at padding."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = Dropout(dropout)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, states: Tensor, allowed: Tensor) -> Tensor:
        """Return ``[B, L, D]`` for states ``[B, L, D]``; allowed ``[B, 1, L, L]`` is true where a query may look."""
        batch, length, dim = states.shape
        query, key, value = (
            part.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)
            for part in self.query_key_value(states).split(dim, dim=-1)
        )
        if self.training and self.dropout.probability > 0.0:
            logits = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
            mixed = self.dropout(logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1)) @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, dim))
        return attended


class Block(nn.Module):
    """One pre-norm transformer block: attention, then a position-wise feed-forward network, each residual."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), Dropout(dropout), nn.Linear(dim, dim))
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor, allowed: Tensor) -> Tensor:
        """Return ``[B, L, D]``."""
        states = states + self.dropout(self.attention(self.attention_norm(states), allowed))
        transformed: Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        return states + transformed


class Positions(nn.Embedding):
    """A learned vector for each position of a window."""

    def forward(self, length: int) -> Tensor:  # type: ignore[override]
        """Return the vectors ``[length, D]`` of the last positions."""
        return self.weight[-length:]


class Backbone(nn.Module, ABC):
    """Item vectors in, one state a position out; the final LayerNorm belongs to the mixture.

    A constructor takes ``settings``, the model's; further arguments are those of ``backbone_parameters``. To be trained
    in stacks of clients, parameters must be those of Linear and LayerNorm layers.
    """

    @abstractmethod
    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Return the states ``[B, L, D]``; the state at position t depends on the items at or before t alone.

        vectors: item vectors ``[B, L, D]``; present: bool ``[B, L]``, false at padding, which is on the left.
        """


class SASRec(Backbone):
    """The default backbone: dim, blocks, heads, dropout and max_seq_len of the settings."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        dim, dropout = settings.dim, settings.dropout
        self.positions = Positions(settings.max_seq_len, dim)
        self.blocks = nn.ModuleList(Block(dim, settings.heads, dropout) for _ in range(settings.blocks))
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Return the states ``[B, L, D]``.

        Positions are counted from the end, so that the latest item is always at the last one.
        """
        length, dim = vectors.shape[1:]
        states: Tensor = self.dropout(vectors * dim**0.5 + self.positions(length)) * present.unsqueeze(-1)
        allowed = attention_mask(present)
        for block in self.blocks:
            states = block(states, allowed)
        return states


BACKBONES: Kind[Backbone] = Kind(
    "model.backbone",
    "model.backbone_parameters",
    Backbone,  # type: ignore[type-abstract]
    {"sasrec": SASRec},
)


def attention_mask(present: Tensor) -> Tensor:
    """Return bool ``[B, 1, L, L]``: query t may look at key s if s <= t and s is no padding.

    A padding position looks at itself, since a softmax over nothing is NaN; its state is never used.
    """
    length = present.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=present.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=present.device)
    allowed: Tensor = (causal & present.unsqueeze(1)) | itself
    return allowed.unsqueeze(1)


def substitutes(features: nn.ModuleDict, table: np.ndarray, touched: Tensor) -> dict[str, Tensor]:
    """Return what stands for the catalogue in the model, by name, on the model's device.

    That is the parameter ``items.ids.weight`` ``[R, D]`` and, of each modality, the buffers ``features.NAME.values``
    ``[R, F]`` and ``features.NAME.present`` ``[R]``. ``torch.func.functional_call`` takes them as they are.

    features: of the catalogue, by modality. table: the item table to start from ``[V + 1, D]``; it is only read.
    touched: ids ``[R]``, the padding's first.
    """
    found = {"items.ids.weight": torch.from_numpy(table).index_select(0, touched.cpu()).to(touched.device)}
    for name, buffer in features.named_buffers():
        found[f"features.{name}"] = buffer.index_select(0, touched)
    return found


@contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model use other tensors for some of its parameters and buffers; afterwards it has its own again.

    Unlike ``functional_call`` this lasts over several calls, and ``model.parameters()`` gives what is trained, which
    optimiser, clipping and reports go by.
    """
    own: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for name, tensor in tensors.items():
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            before = getattr(module, attribute)
            own.append((module, attribute, before))
            setattr(module, attribute, nn.Parameter(tensor) if isinstance(before, nn.Parameter) else tensor)
        yield
    finally:
        for module, attribute, before in own:
            setattr(module, attribute, before)
