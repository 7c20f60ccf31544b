"""SASRec: self-attentive sequential recommendation (Kang & McAuley, ICDM 2018), with pre-norm blocks.

Shapes: B windows, L positions, H heads, D hidden size. Windows are padded on the left with item 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.dropout import Dropout


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


class SASRec(nn.Module):
    """The backbone: item vectors in, one state a position out. Its final LayerNorm belongs to the mixture."""

    def __init__(self, dim: int, blocks: int, heads: int, dropout: float, max_seq_len: int) -> None:
        super().__init__()
        self.positions = Positions(max_seq_len, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(blocks))
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Return the states ``[B, L, D]``; the state at position t depends on the items at or before t alone.

        vectors: item vectors ``[B, L, D]``; present: bool ``[B, L]``, false at padding.
        Positions are counted from the end, so that the latest item is always at the last one.
        """
        length, dim = vectors.shape[1:]
        states: Tensor = self.dropout(vectors * dim**0.5 + self.positions(length)) * present.unsqueeze(-1)
        allowed = attention_mask(present)
        for block in self.blocks:
            states = block(states, allowed)
        return states


def attention_mask(present: Tensor) -> Tensor:
    """Return bool ``[B, 1, L, L]``: query t may look at key s if s <= t and s is no padding.

    A padding position looks at itself, since a softmax over nothing is NaN; its state is never used.
    """
    length = present.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=present.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=present.device)
    allowed: Tensor = (causal & present.unsqueeze(1)) | itself
    return allowed.unsqueeze(1)
