"""The settings of a run: one typed, frozen tree, used by simulation and deployment alike.

Each leaf has a default, a range and a description; ``fedmoe.loading`` fills the tree from a YAML file,
``key=value`` words and ``--flags``. The tree travels to the Flower apps as one JSON string in the run config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedmoe.data_settings import DataSettings, named_after_data
from fedmoe.execution_settings import DeploymentSettings as DeploymentSettings
from fedmoe.execution_settings import GuardSettings as GuardSettings
from fedmoe.execution_settings import SimulationSettings as SimulationSettings
from fedmoe.execution_settings import Tracking as Tracking
from fedmoe.learning_settings import EvaluationSettings as EvaluationSettings
from fedmoe.learning_settings import PrivacySettings as PrivacySettings
from fedmoe.learning_settings import TrainingSettings as TrainingSettings
from fedmoe.modalities import (
    EXPERT,
    GROUPS,
    ITEM_ATTENTION,
    Groups,
    Kind,
    Modalities,
    ModalitySettings,
    respelled,
    selected,
    with_attributes,
)
from fedmoe.section import Count, CountOrZero, Fraction, NonNegative, Probability, Section


class ModelSettings(Section):
    """The backbone and the residual mixture of one expert for each modality."""

    backbone: str = Field("sasrec", description="sasrec, or package.module:Class for a backbone of your own")
    backbone_parameters: dict[str, Any] = Field({}, description="arguments of a backbone of your own")
    dim: Annotated[int, Field(ge=2)] = Field(64, description="hidden size D")
    blocks: CountOrZero = Field(2, description="transformer blocks of the backbone")
    heads: Count = Field(2, description="attention heads of the backbone, and of experts that ask with the item vector")
    dropout: Probability = Field(
        0.2, description="dropout of backbone and router, and of experts with experts: attention"
    )
    max_seq_len: Annotated[int, Field(ge=2)] = Field(50, description="positions of a window L")
    mixture: bool = Field(True, description="false: SASRec alone, without experts, router and gate")
    item_representation: Literal["id", "id+content"] = Field(
        "id", description="id: learned embedding; id+content: plus the item's projected features, for few rounds"
    )
    fusion: Literal["residual", "competitive", "score"] = Field(
        "residual", description="how the experts join the backbone"
    )
    score: Literal["dot", "cosine"] = Field("dot", description="dot product, or sqrt(D) times the cosine")
    experts: Kind = Field(
        "matching",
        description="matching: attention begins at recent items like the candidate; attention: the reference's, which "
        "begins anywhere and asks with the candidate's features, for text with its item vector (feature_attention, "
        "item_attention); or package.module:Class",
    )
    gate_init: Annotated[float, Field(allow_inf_nan=False)] = Field(0.5, description="initial value of the gate g")
    norm_sequence: bool = Field(True, description="LayerNorm on the backbone's state")
    attention_dim: Count = Field(64, description="width of the experts' queries and keys (at most 128)", le=128)
    memory_size: Count = Field(50, description="items an expert attends over, the latest ones met")
    memory_refresh: Count = Field(
        10,
        description="training: positions that share one memory, of what was met up to the first of them; "
        "fewer in windows of less than 50",
    )
    memory_decay: NonNegative = Field(
        5.0, description="matching experts: later items with which an item's weight falls to 1/e; 0: it does not"
    )
    memory_floor: NonNegative = Field(4.0, description="matching experts: weight of an item, plus exp(likeness)")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        for name in ("dim", "attention_dim"):
            if getattr(self, name) % self.heads:
                raise ValueError(f"heads ({self.heads}) must divide {name} ({getattr(self, name)})")
        if self.memory_size % self.memory_refresh:
            raise ValueError(
                f"memory_size ({self.memory_size}) must be a multiple of memory_refresh ({self.memory_refresh})"
            )
        return self


ADAMS = ("fedadam", "lazyadam")  # strategies that the default parameters are for


class FederationSettings(Section):
    """What the server does: rounds, cohorts, strategy and aggregation schedule."""

    num_rounds: Count = Field(300, description="rounds")
    client_fraction: Fraction = Field(0.05, description="share of the clients in a round")
    min_reply_fraction: Fraction = Field(
        0.5, description="a round fails, and leaves the model as it was, if a smaller share of its clients replied"
    )
    client_weight: Literal["examples", "sqrt", "equal"] = Field(
        "examples", description="weight of a client in the mean: its training targets, their square root, or 1"
    )
    strategy: str = Field("fedadam", description="a strategy of Flower by name, or package.module:Class")
    strategy_parameters: dict[str, Any] = Field(
        {"eta": 0.0076, "tau": 1e-6},
        description="arguments of the strategy; none where you name a strategy of your own",
    )
    server_schedule: Literal["constant", "cosine"] = Field(
        "cosine", description="course of the strategy's server learning rate over the rounds"
    )
    warmup_rounds: CountOrZero = Field(
        30, description="rounds at the start in which the groups of 'warmup' are aggregated"
    )
    warmup: Groups = Field(GROUPS, description="groups aggregated during the warm-up, or 'all'")
    shared: Groups = Field(
        ("embedding", "backbone", f"{EXPERT}*"),
        description="groups aggregated after the warm-up, or 'all'; the others stay with the client",
    )
    item_updates: Literal["auto", "dense"] = Field(
        "auto", description="what a client sends of the item table; auto: its touched rows where that is smaller"
    )
    evaluate_every: CountOrZero = Field(30, description="rounds between evaluations; 0: only at the end")
    evaluate_clients: CountOrZero = Field(
        0, description="clients whose validation items are ranked, always the same; 0: all"
    )
    patience: CountOrZero = Field(10, description="evaluations without a better NDCG@10 before stopping; 0: never")
    checkpoint_every: CountOrZero | None = Field(
        None, description="rounds between checkpoints; 0: only at the end; null: 30, and 1 in a deployment"
    )
    guards: GuardSettings = GuardSettings()

    @model_validator(mode="before")
    @classmethod
    def _defaults_belong_to_adam(cls, given: Any) -> Any:
        """The default parameters and schedule are those of the default strategy; others start without them."""
        if not isinstance(given, dict):
            return given
        if given.get("strategy", "fedadam") not in ADAMS:
            return {"strategy_parameters": {}, "server_schedule": "constant"} | given
        if "strategy_parameters" not in given:
            return given
        own, default = given["strategy_parameters"], cls.model_fields["strategy_parameters"].default
        return given | {"strategy_parameters": default | own} if isinstance(own, dict) else given


class Settings(Section):
    """All settings of a run."""

    name: str = Field(
        "ml-100k",
        description="name of the run, part of its folder; that of the data unless given",
        pattern=r"^[\w.+-]+$",
    )
    seed: CountOrZero = Field(42, description="seed of everything random")
    save_dir: Path = Field(Path("runs"), description="folder that holds the run folders")
    tracking: Tracking = Field(
        {"tensorboard": {}},
        description="trackers: tensorboard, csv, mlflow, wandb, or package.module:Class; a list of them, or a mapping "
        "of each to its arguments",
    )
    data: DataSettings = DataSettings()
    modalities: Modalities = Field(
        {}, description="name of a modality: its settings; null: none", validate_default=True
    )
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    privacy: PrivacySettings = PrivacySettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    simulation: SimulationSettings = SimulationSettings()
    deployment: DeploymentSettings = DeploymentSettings()

    @model_validator(mode="before")
    @classmethod
    def _spelt_as_the_reference_does(cls, given: Any) -> Any:
        return with_attributes(named_after_data(respelled(given))) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _modalities_exist(self) -> Self:
        for key in ("warmup", "shared"):
            for group in getattr(self.federation, key):
                if group.startswith(EXPERT) and not selected([group], self.expert_groups) and group not in GROUPS:
                    known = ", ".join(self.modalities)
                    raise ValueError(f"federation.{key}: '{group}' is no modality's expert: modalities are {known}")
        if self.data.item_id_file is not None and not any(m.path for m in self.named_modalities.values()):
            raise ValueError("data.item_id_file names the rows of feature files, but no modality has a file")
        return self

    @model_validator(mode="after")
    def _new_items_are_no_negatives(self) -> Self:
        if self.data.new_items and self.training.loss == "softmax":
            raise ValueError("training.loss softmax makes every item a negative, also data.new_items: set another loss")
        if self.data.new_items and self.evaluation.protocol != "full":
            raise ValueError("data.new_items are ranked among all items: set evaluation.protocol to full")
        return self

    def in_deployment(self) -> Settings:
        """Return the settings with a checkpoint each round, unless they say otherwise: no client's work is lost."""
        every = 1 if self.federation.checkpoint_every is None else self.federation.checkpoint_every
        return self.model_copy(update={"federation": self.federation.model_copy(update={"checkpoint_every": every})})

    @property
    def named_modalities(self) -> dict[str, ModalitySettings]:
        """The modalities that have not been set to null; whether items have features of them, the data set says."""
        return {name: own for name, own in self.modalities.items() if own is not None}

    @property
    def expert_groups(self) -> list[str]:
        """The groups of the experts' parameters, with those of the modalities that have been set to null."""
        return [f"{EXPERT}{name}" for name in self.modalities]

    def expert_of(self, modality: str) -> str:
        """Return the kind of a modality's expert."""
        kind = self.named_modalities[modality].expert or self.model.experts
        if kind == "attention":
            return "item_attention" if modality in ITEM_ATTENTION else "feature_attention"
        return kind
