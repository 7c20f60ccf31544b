"""The settings of a run's data: which histories, and how they and the items' features are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fedmoe.errors import nearest
from fedmoe.section import Count, CountOrZero, Section

KeepOrDrop = Literal["keep", "drop"]
ErrorOrDrop = Literal["error", "drop"]
# A column without a name is given by its number, which YAML and the command line read as one.
Column = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) is int else given)]


class SyntheticSettings(Section):
    """The seeded synthetic data set, with planted sequential, visual and textual structure."""

    users: Count = Field(200, description="number of users")
    items: Annotated[int, Field(ge=10)] = Field(300, description="number of items in the catalogue")
    mean_length: Annotated[float, Field(ge=5)] = Field(30.0, description="mean history length, items")
    structure: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.8, description="share of steps that follow the planted structure; 0: the next item is random"
    )
    clusters: Annotated[int, Field(ge=2)] = Field(12, description="number of planted groups of items")
    feature_dim: Annotated[int, Field(ge=2)] = Field(32, description="width of the visual and text features")
    missing: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.05, description="share of items without a picture, and without text"
    )


Holds = Literal["text", "attributes", "picture", "ignore"]
DATA_SETS = ("ml-100k", "ml-1m", "synthetic", "file", "catalogue")


def _known_data_set(name: str) -> str:
    if name not in DATA_SETS and ":" not in name:
        raise ValueError(f"must be {', '.join(DATA_SETS)}, or package.module:Class{nearest(name, DATA_SETS)}")
    return name


DataName = Annotated[str, AfterValidator(_known_data_set)]


class DataSettings(Section):
    """Which histories and item features a run uses."""

    dataset: DataName = Field(
        "ml-100k",
        description="ml-100k, ml-1m or synthetic; file for data_file; catalogue: items without histories, in data_dir, "
        "for a server of real clients; or package.module:Class",
    )
    dataset_parameters: dict[str, Any] = Field({}, description="arguments of a data set of your own")
    data_dir: Path | None = Field(None, description="folder of the data files; default: the cache folder")
    data_file: Path | None = Field(None, description="own histories: a path, or a name inside data_dir")
    data_format: Literal["auto", "sequences", "ratings", "inter", "csv", "jsonl", "parquet"] = Field(
        "auto", description="format of data_file; auto: told by its content and ending"
    )
    user_column: Column = Field(
        "user_id", description="name of a table's user column, or its number where none is named"
    )
    item_column: Column = Field("item_id", description="name or number of a table's item column")
    time_column: Column | None = Field("timestamp", description="name or number of the time column; null: file order")
    time_format: str | None = Field(
        None, description="how times are written, such as %d/%m/%Y (strptime); null: numbers, or dates of ISO 8601"
    )
    item_file: Path | None = Field(
        None, description="table of the items: a column of ids as item_column, and columns of texts, attributes, paths"
    )
    item_columns: dict[str, Holds] = Field(
        {}, description="what columns of item_file hold: text, attributes, picture or ignore; others: told by content"
    )
    incomplete: ErrorOrDrop = Field("error", description="rows of a table without user, item or time")
    duplicates: KeepOrDrop = Field("drop", description="rows of the same user, item and time")
    repeats: KeepOrDrop = Field("keep", description="later interactions of a user with the same item")
    feature_dim: CountOrZero = Field(
        64, description="features wider than this are reduced to so many principal components; 0: never"
    )
    item_id_file: Path | None = Field(
        None, description="line k holds the item id of row k of the feature files; default: item_ids.txt beside them"
    )
    min_items: Annotated[int, Field(ge=4)] = Field(5, description="users with fewer are dropped; two are held out")
    new_items: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="share of the catalogue that is withheld from all training; the last time that each user met such "
        "an item is ranked at the end; 0: none",
    )
    synthetic: SyntheticSettings = SyntheticSettings()

    @model_validator(mode="before")
    @classmethod
    def _own_histories_are_a_data_set(cls, given: Any) -> Any:
        """Who names a file of histories, and no data set, means these."""
        if isinstance(given, dict) and given.get("data_file") is not None:
            return {"dataset": "file"} | given
        return given

    @model_validator(mode="after")
    def _what_is_named_is_read(self) -> Self:
        if self.dataset == "file" and self.data_file is None:
            raise ValueError("dataset 'file' needs data_file: the path of your histories")
        if self.dataset != "file" and self.data_file is not None:
            raise ValueError(f"dataset '{self.dataset}' does not read data_file: set dataset to file, or leave one out")
        if self.dataset_parameters and self.dataset in DATA_SETS:
            raise ValueError(f"dataset_parameters are for a data set of your own, not for '{self.dataset}'")
        if self.dataset == "catalogue" and self.data_dir is None:
            raise ValueError("dataset 'catalogue' needs data_dir: a folder made by 'fedmoe_server catalogue'")
        if self.dataset == "catalogue" and self.new_items:
            raise ValueError("new_items withholds items from histories, which dataset 'catalogue' does not have")
        if self.item_file is not None and self.dataset in ("synthetic", "catalogue"):
            raise ValueError(f"dataset '{self.dataset}' does not read item_file: leave it out")
        if self.item_columns and self.item_file is None:
            raise ValueError("item_columns are those of item_file: set it too")
        if self.dataset != "synthetic" and self.synthetic != SyntheticSettings():
            raise ValueError(f"dataset '{self.dataset}' has no use for data.synthetic: set dataset to synthetic")
        return self


def named_after_data(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree of settings in which a run without a name has that of its data's file, or of its data set."""
    data = tree.get("data")
    known = data if isinstance(data, Mapping) else {}
    file, dataset = known.get("data_file"), known.get("dataset")
    dataset = dataset.rpartition(":")[2] if isinstance(dataset, str) else dataset
    source = Path(str(file)).name.partition(".")[0] if file is not None else dataset
    return ({"name": re.sub(r"[^\w+-]+", "-", source)} if isinstance(source, str) and source else {}) | dict(tree)
