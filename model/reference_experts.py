"""The reference's experts, which learn from nothing what to attend to, and the register of all kinds of expert."""

from __future__ import annotations

from torch import Tensor, nn

from fedmoe.components import Kind
from fedmoe.settings import ModelSettings
from model.experts import AttentionExpert, Expert, MatchingExpert
from model.sasrec import Dropout, FixedFeatures


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
