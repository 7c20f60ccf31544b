"""The settings of what clients do: how they train, how their held-out items are ranked, what the server sees of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

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


def _words_of_yaml(given: Any) -> Any:
    """Return on and off, which YAML reads as true and false, as words."""
    return ("on" if given else "off") if isinstance(given, bool) else given


class PrivacySettings(Section):
    """Client-level differential privacy; off unless epsilon or noise_multiplier is given. See docs/privacy.md."""

    epsilon: Positive | None = Field(
        None, description="budget of the run: chooses the noise, and the run stops before it is overspent; null: none"
    )
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        1e-5, description="chance that epsilon does not hold; below 1 / clients"
    )
    noise_multiplier: Positive | None = Field(
        None, description="noise in multiples of the clipping norm; null: chosen so that all rounds cost epsilon"
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        "fixed", description="clipping norm of the updates: update_norm, or following a quantile of the clients' norms"
    )
    update_norm: Positive = Field(
        0.2,
        description="largest L2 norm of a client's update; the first one, if adaptive; 1 with sum_bits and no noise",
    )
    norm_quantile: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="adaptive clipping: share of the clients whose updates are within the norm"
    )
    norm_rate: Positive = Field(0.2, description="adaptive clipping: speed with which the norm follows")
    sum_bits: Annotated[int, Field(ge=0, le=24)] | None = Field(
        None,
        description="the server uses clients' updates and metrics as exact sums alone, of integers of so many bits, "
        "8 to 24; 0: each client's, as floats; null: 0, and 20 in a deployment that can aggregate securely",
    )
    secure_aggregation: Annotated[Literal["auto", "on", "off"], BeforeValidator(_words_of_yaml)] = Field(
        "auto",
        description="real clients add their integers up under masks, so that the server sees sums alone; auto: where "
        "it can be had, and the run says why not; on: an error where it cannot",
    )
    rows_first: Annotated[Literal["auto", "on", "off"], BeforeValidator(_words_of_yaml)] = Field(
        "auto",
        description="secure aggregation: count the touched rows of the item table in a sum of their own, and add the "
        "answers up at those alone; auto: where that spares half the bytes, and a megabyte a client",
    )
    smallest_cohort: Annotated[int, Field(ge=3)] = Field(
        3, description="secure aggregation: the fewest clients whose sum the server may see"
    )
    dropouts: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        0.3, description="secure aggregation: largest share of a round's clients that may vanish in it"
    )
    corrupt: Annotated[float, Field(ge=0.1, lt=0.5)] = Field(
        0.1, description="secure aggregation: largest share of the clients that may be in league with the server"
    )
    side: Literal["server", "client", "distributed"] = Field(
        "server",
        description="who clips the updates and makes the noise; client: before anything leaves it; distributed: each "
        "client a share, which is enough in the sum (sum_bits)",
    )
    metrics: Literal["none", "exact"] = Field(
        "none", description="what clients report of their training: none, or exact numbers outside the guarantee"
    )

    @property
    def on(self) -> bool:
        """Whether the run is private."""
        return self.epsilon is not None or self.noise_multiplier is not None

    @model_validator(mode="before")
    @classmethod
    def _sums_clip_less(cls, given: Any) -> Any:
        """Without noise a clipping norm is a guard against outliers, and few updates need it."""
        if not isinstance(given, dict) or not given.get("sum_bits"):
            return given
        noisy = any(given.get(key) is not None for key in ("epsilon", "noise_multiplier"))
        return given if noisy else {"update_norm": 1.0} | given

    @model_validator(mode="after")
    def _sums_fit(self) -> Self:
        if 0 < (self.sum_bits or 0) < 8:
            raise ValueError(f"sum_bits ({self.sum_bits}) must be 0 or 8 to 24")
        if self.secure_aggregation == "on" and self.sum_bits == 0:
            raise ValueError("secure_aggregation adds integers up: set sum_bits too, such as to 20")
        if not self.on:
            return self
        if self.sum_bits and self.side != "distributed":
            raise ValueError(f"side {self.side} clips single updates, which sum_bits hides: set side to distributed")
        if self.side == "distributed" and not self.sum_bits:
            raise ValueError("side distributed hides an update in the sum alone: set sum_bits, such as 14")
        if self.side == "distributed" and (self.clipping != "fixed" or self.metrics != "none"):
            raise ValueError("side distributed takes clipping fixed and metrics none: set these two")
        return self
