"""The settings of what clients do: how they train, and how their held-out items are ranked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from fedmoe.errors import nearest
from fedmoe.section import Count, CountOrZero, NonNegative, Positive, Probability, Section

LOSSES = ("sampled_softmax", "softmax", "bpr", "gbce")


def _known_loss(loss: str) -> str:
    if loss not in LOSSES and ":" not in loss:
        raise ValueError(f"must be {', '.join(LOSSES)}, or package.module:Class{nearest(loss, LOSSES)}")
    return loss


Loss = Annotated[str, AfterValidator(_known_loss)]


class TrainingSettings(Section):
    """What a client does with its own history in one round."""

    client: str = Field("plain", description="plain, or package.module:Class for a client of your own")
    client_parameters: dict[str, Any] = Field({}, description="arguments of a client of your own")
    local_epochs: Count = Field(1, description="passes over the client's windows in a round")
    windows: Literal["all", "latest", "random"] = Field(
        "all", description="windows of an epoch: all, the latest one, or one ending at a random position"
    )
    max_windows: CountOrZero = Field(
        2, description="windows of an epoch: at most so many, the latest and others drawn anew each time; 0: all"
    )
    batch_size: Count = Field(32, description="windows of one local step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="the client's optimiser, new each round")
    learning_rate: Positive = Field(0.1, description="the client's learning rate")
    learning_rate_warmup_rounds: CountOrZero = Field(
        0, description="rounds over which the client's learning rate rises from 0"
    )
    momentum: Probability = Field(0.0, description="momentum (sgd)")
    weight_decay: NonNegative = Field(0.0, description="decay of the weights, never of item embeddings")
    clip_norm: NonNegative = Field(5.0, description="largest norm of a step's gradient; 0: no clipping")
    clip_gate: NonNegative = Field(1.0, description="largest gradient of the gate; 0: no clipping")
    loss: Loss = Field(
        "sampled_softmax",
        description="sampled_softmax: over the positive and sampled negatives; softmax: over all items; bpr; gbce; "
        "or package.module:Class",
    )
    loss_parameters: dict[str, Any] = Field({}, description="arguments of a loss of your own")
    num_negatives: Count = Field(128, description="negatives of a window, outside the user's training items")
    gbce_calibration: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.75, description="t of gBCE")
    balance_weight: NonNegative = Field(0.01, description="weight of the router's load-balance loss")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the model's products in training; bfloat16: parameters and losses stay float32"
    )

    @model_validator(mode="after")
    def _parameters_are_an_own_loss_s(self) -> Self:
        if self.loss_parameters and self.loss in LOSSES:
            raise ValueError(f"loss_parameters are for a loss of your own, not for {self.loss}: leave them out")
        return self

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for sgd: set it to 0, or optimizer to sgd in place of {self.optimizer}")
        return self


class EvaluationSettings(Section):
    """How the held-out item is ranked."""

    protocol: Literal["full", "sampled"] = Field(
        "full", description="rank among all items not seen, or among 1 + num_candidates sampled"
    )
    num_candidates: Count = Field(100, description="sampled negatives, fixed for a user and seed")
    cutoffs: tuple[Count, ...] = Field((5, 10, 20, 50), description="K of HR@K and NDCG@K; 10 is always there")
    metrics: dict[str, str] = Field({}, description="metrics of your own: name -> package.module:Class")
    metric_parameters: dict[str, dict[str, Any]] = Field({}, description="their arguments, by the same names")

    @model_validator(mode="after")
    def _parameters_have_a_metric(self) -> Self:
        for name in self.metric_parameters:
            if name not in self.metrics:
                raise ValueError(f"metric_parameters: there is no metric '{name}'{nearest(name, self.metrics)}")
        return self
