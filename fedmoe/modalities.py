"""The modalities of the items and the groups of the parameters, as the settings name them.

A modality has a name, features and an expert. Its expert's parameters are the group ``experts.NAME``. The names
``visual`` and ``text`` are those of the reference document, whose spellings are understood too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fedmoe.errors import nearest
from fedmoe.section import Section

TITLES = "titles"
NOISE = "noise"
EXPERT = "experts."
GROUPS = ("embedding", "backbone", f"{EXPERT}*", "router", "gate", "norms")
KINDS = ("matching", "attention", "feature_attention", "item_attention")
# The modalities that are there without being named, where a data set has features of them.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {"visual": {}, "text": {"file": TITLES}}
# There by default with a table of items, and with films that have no features of one's own.
ATTRIBUTES = "attributes"
FILMS = ("ml-100k", "ml-1m")
# The reference's expert of this name asks with the candidate's item vector, the others with its features.
ITEM_ATTENTION = ("text",)
# The reference's spellings, and what they are here.
SPELLINGS = {
    "data.visual_file": "modalities.visual.file",
    "data.text_file": "modalities.text.file",
    "model.norm_visual": "modalities.visual.norm",
    "model.norm_semantic": "modalities.text.norm",
    "model.visual_expert": "modalities.visual.expert",
    "model.semantic_expert": "modalities.text.expert",
}
GONE = (("federation", "decoy_rows"),)
# Sections that only a run writes down all at once, with every key; keys that runs of earlier versions lack, and what
# they did.
WRITTEN = {"data", "model", "training", "federation", "privacy", "evaluation", "simulation", "deployment"}
NEW = (("model", "memory_floor", 0.0),)
_NAMES = {"semantic": "text"}
_GROUPS = {"visual_expert": "experts.visual", "semantic_expert": "experts.text", "experts.semantic": "experts.text"}
_RESERVED = ("sequence", "entropy")  # the backbone's norm and share, and a metric of the router


def _known_kind(kind: str) -> str:
    if kind not in KINDS and ":" not in kind:
        raise ValueError(f"must be {', '.join(KINDS)}, or package.module:Class{nearest(kind, KINDS)}")
    return kind


Kind = Annotated[str, AfterValidator(_known_kind)]


class ModalitySettings(Section):
    """One modality of the items."""

    file: str | None = Field(
        None,
        description="features: a .npy, .pt or .safetensors file; titles: made from titles, and from genres and decade "
        "unless these are a modality of their own, attributes; noise; "
        "null: those that the data set itself has under this name, if any. Default of text: titles",
    )
    encoder: str | None = Field(
        None,
        description="what encodes the texts or pictures that the data set or item_file has: a sentence encoder, a CLIP "
        "by name or folder, or efficientnet-lite0; null: words, or thumbnails, which need no download",
    )
    item_id_file: Path | None = Field(
        None, description="line k holds the item id of row k of the file; default: data.item_id_file"
    )
    norm: bool = Field(True, description="LayerNorm on the expert's view")
    expert: Kind | None = Field(None, description="kind of expert; default: model.experts")
    expert_parameters: dict[str, Any] = Field({}, description="arguments of an expert of your own")

    @model_validator(mode="after")
    def _encoder_is_used(self) -> Self:
        if self.encoder is not None and (self.path is not None or self.file == NOISE):
            raise ValueError(f"encoder makes features, but file '{self.file}' has them: leave one out")
        return self

    @property
    def path(self) -> Path | None:
        """The feature file, where the features come from one."""
        return None if self.file in (None, TITLES, NOISE) else Path(str(self.file))


def _known_name(name: str) -> str:
    if not name.isidentifier() or not name.islower() or name in _RESERVED:
        raise ValueError(f"a modality's name is a word in lower case, and not {' or '.join(_RESERVED)}")
    return name


def _completed(given: Any) -> Any:
    """Add the modalities that are there by default, which come first, and the default values of what is given."""
    if not isinstance(given, Mapping):
        return given
    named = {_NAMES.get(str(name), str(name)): value for name, value in given.items()}
    return {
        name: {**DEFAULTS.get(name, {}), **value} if isinstance(value, Mapping) else value
        for name, value in {**DEFAULTS, **named}.items()
    }


Modalities = Annotated[
    dict[Annotated[str, AfterValidator(_known_name)], ModalitySettings | None], BeforeValidator(_completed)
]


def respelled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree of settings with the reference's spellings of a modality's keys replaced by ours.

    A setting of earlier versions that is gone, and was off, is left out, and one that is new has the value that does
    what they did: files of earlier runs can be read, and mean the same.
    """
    tree = dict(tree)
    for section, key in GONE:
        if isinstance(tree.get(section), dict) and not tree[section].get(key):
            tree[section] = {other: kept for other, kept in tree[section].items() if other != key}
    for section, key, before in NEW if _written_by_a_run(tree) else ():
        if isinstance(tree[section], dict):
            tree[section] = {key: before, **tree[section]}
    for old, new in SPELLINGS.items():
        section, key = old.split(".")
        _, name, field = new.split(".")
        if isinstance(tree.get(section), dict) and key in tree[section]:
            value = tree[section][key]
            tree[section] = {other: kept for other, kept in tree[section].items() if other != key}
            named = tree.get("modalities", {})
            if isinstance(named, dict) and isinstance(named.get(name, {}), dict):
                tree["modalities"] = named | {name: {field: value} | named.get(name, {})}
    return tree


def _written_by_a_run(tree: Mapping[str, Any]) -> bool:
    return tree.keys() >= WRITTEN


def with_attributes(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree of settings in which items that have attributes have a modality of them, unless it is named.

    A table of items has them. Films have them too: genres and decade. Their default modalities are those two, titles
    and attributes, unless the file of a modality is given, or said to be none.
    """
    data, named = tree.get("data") or {}, tree.get("modalities", {})
    if not (isinstance(data, Mapping) and isinstance(named, Mapping)):
        return dict(tree)
    films = data.get("data_file") is None and data.get("dataset", FILMS[0]) in (*FILMS, "catalogue")
    if data.get("item_file") is not None or (films and not (_own_features(named) or _written_by_a_run(tree))):
        return {**tree, "modalities": {ATTRIBUTES: {}, **named}}
    return dict(tree)


def _own_features(named: Mapping[str, Any]) -> bool:
    """Whether modalities as given say anything of a file."""
    return any(each.get("file", TITLES) != TITLES for each in named.values() if isinstance(each, Mapping))


def _known_group(group: str) -> str:
    group = _GROUPS.get(group, group)
    if not selected([group], GROUPS) and not group.startswith(EXPERT):
        raise ValueError(f"unknown group: groups are {', '.join(GROUPS)}{nearest(group, GROUPS)}")
    return group


def _all_groups(given: Any) -> Any:
    return GROUPS if given == "all" else given


Groups = Annotated[tuple[Annotated[str, AfterValidator(_known_group)], ...], BeforeValidator(_all_groups)]


def selected(patterns: Collection[str], groups: Iterable[str]) -> list[str]:
    """Return the groups that one of the patterns, such as ``experts.*``, matches, in their own order."""
    return [group for group in groups if any(fnmatchcase(group, pattern) for pattern in patterns)]
